"""What a visitor takes home from a run: pictures, masks, settings, and code that does it again."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import asdict
from pathlib import Path

from PIL import Image

from .tracing import Trace

CODE = """\
import torch
from PIL import Image

from sona_pipeline import load_pipeline

pipe = load_pipeline({model!r}, {device!r})
outlier = pipe(
    Image.open("source.png"),
{arguments}
    generator=torch.Generator().manual_seed({seed}),
).images[0]
outlier.save("again.png")
"""


def code_of(trace: Trace, model: str, device: str) -> str:
    """A program that makes the outlier of a trace again from `source.png`, with the model and on the device named."""
    arguments = "\n".join(f"    {name}={value!r}," for name, value in trace.request.arguments().items())
    return CODE.format(model=model, device=device, arguments=arguments, seed=trace.request.seed)


def pack(path: Path, trace: Trace, others: dict[str, Image.Image], sheet: Image.Image, code: str) -> None:
    """Write the ZIP archive of a run.

    Args:
        path: of the archive.
        trace: the run.
        others: pictures of the comparisons by name.
        sheet: the strip of all steps.
        code: see `code_of`.
    """
    pictures = {"source": trace.source, "strip": sheet} | {
        name.replace(" ", "-"): image for name, image in others.items()
    }
    if trace.outlier:
        pictures["outlier"] = trace.outlier
    for name, shares in trace.masks.items():
        for k, share in enumerate(shares):
            mask = Image.fromarray((255 * share).round().astype("uint8"))
            pictures[f"masks/{name}-t{trace.stop_step - k:03d}"] = mask.resize(
                trace.source.size, Image.Resampling.NEAREST
            )
    with zipfile.ZipFile(path, "w") as archive:
        for name, picture in pictures.items():
            content = io.BytesIO()
            picture.save(content, "PNG")
            archive.writestr(f"{name}.png", content.getvalue())
        settings = asdict(trace.request) | {"stop_step": trace.stop_step, "steps_done": len(trace)}
        archive.writestr("settings.json", json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
        archive.writestr("again.py", code)
