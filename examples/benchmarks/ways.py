"""Outliers of every way side by side, of the same eight images, on one sheet.

    mkdir early && cp -r examples/benchmarks/cifar10/trained early/model
    cp examples/patch_autoencoder.py early/model/vae/
    python examples/benchmarks/ways.py --early early/model --output ways

Some minutes on two cores. The embedded model for colour also draws the images that stand for ID images, 50 of each
class: a detector is trained on them for `ascood`, and `dream` and `autoaug` look at all of them. The plan is the same
for all ways. `fakeit` draws with an earlier, weaker model (10,000 steps); by the embedded model, which it has without
`--early`, its images would be no outliers. What came out is in `examples/benchmarks/results/ways`.
"""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import cyclopts
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image

from sona_pipeline import (
    RECIPES,
    WAYS,
    GenerationSettings,
    ImageSet,
    OutlierMaker,
    draw,
    embedded_labels,
    load_pipeline,
    make_plan,
    save_figure,
    train_detector,
    write_text,
)

MODEL, CLASSES, PER_CLASS, SHOWN = "cifar", 10, 50, 8
"""The first labels of the model are ID classes; of the first eight an image is shown."""
Cell = tuple[Image.Image, str]


def drawn_images(seed: int) -> ImageSet:
    """Drawings of the ID classes."""
    classes = embedded_labels(MODEL)[:CLASSES]
    labels = [label for label in range(CLASSES) for _ in range(PER_CLASS)]
    pictures = draw(MODEL, [f"a photo of a {classes[label]}" for label in labels], seed)
    keys = [f"{classes[label]}/{k:03d}" for k, label in enumerate(labels)]
    return ImageSet(tuple(keys), tuple(labels), tuple(classes), pictures.__getitem__)


def made_by(
    model: str, images: ImageSet, shown: np.ndarray, settings: GenerationSettings, detector: Path
) -> tuple[list[Cell], dict[str, float]]:
    """The outliers of the images at the places `shown`, with captions; and what one took and is like, in the mean."""
    pipe = load_pipeline(model, "cpu", dtype="float32", scheduler="ddim", trust_remote_code=True)
    maker, rows = OutlierMaker(pipe, make_plan(images, pipe, settings), strict=True), []
    pipe.unet.register_forward_hook(lambda unet, inputs, output: rows.append(len(inputs[0])))
    started = time.monotonic()
    maker.way.load(maker, str(detector))
    maker.way.begin(maker, maker.way.prepare(maker))
    prepared = time.monotonic()
    work = maker.decode(maker.denoise(maker.encode(maker.read(maker.plan.batch(shown)))))
    took = {
        "UNet rows": sum(rows) / len(shown),
        "seconds": (time.monotonic() - prepared) / len(shown),
        "seconds before": prepared - started,
    }
    cells = []
    for item, _, outlier, _ in work.made:
        has_step = maker.way.uses_stop_step or settings.way == "oir"
        words = [item.ood_label] * maker.way.uses_label + [str(item.stop_step)] * has_step
        cells.append((outlier, ", ".join(words)))
    names = ("latent_distance", "contrast", "saturation")
    return cells, took | {name: float(np.mean([checks[name] for _, checks, *_ in work.made])) for name in names}


def sheet(rows: dict[str, Sequence[Cell] | str]) -> Figure:
    """Pictures with captions, a row a way; of a way that does not go with the model the reason."""
    figure = Figure(figsize=(1 + 1.15 * SHOWN, 1.35 * len(rows)), layout="constrained")
    for axes, (name, cells) in zip(figure.subplots(len(rows), SHOWN), rows.items()):
        for axis in axes:
            axis.set(xticks=[], yticks=[], frame_on=False)
        axes[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=10)
        if isinstance(cells, str):
            axes[0].text(0, 0.5, cells, fontsize=8, va="center", transform=axes[0].transAxes).set_in_layout(False)
            continue
        for axis, (picture, caption) in zip(axes, cells):
            axis.imshow(np.asarray(picture))
            axis.set_title(caption, fontsize=8, pad=2)
    return figure


def main(*, output: Path = Path("ways"), early: str = MODEL, seed: int = 0) -> None:
    """Make the outliers, and write `sheet.png`, `results.csv` and `run.json` to `OUTPUT/results`.

    Args:
        output: Folder for the detector and the results.
        early: Model for `fakeit`, of a training that was stopped early.
        seed: Of drawings, detector and outliers.
    """
    started, images = time.monotonic(), drawn_images(seed)
    settings = GenerationSettings(tuple(embedded_labels(MODEL)[CLASSES:]), seed=seed)
    train_detector(images, replace(RECIPES["small"], id_rate=None, seed=seed), output=output / "detector")
    plan = make_plan(images, load_pipeline(MODEL, "cpu"), settings)
    shown = np.array(sorted(range(0, SHOWN * PER_CLASS, PER_CLASS), key=lambda k: plan.stop_steps[k]))
    rows: dict[str, Sequence[Cell] | str] = {"source": [(images.image(k), images.label_name(k)) for k in shown]}
    found = {}
    for way in WAYS:
        model = early if way == "fakeit" else MODEL
        try:
            rows[way], found[way] = made_by(model, images, shown, replace(settings, way=way), output / "detector")
        except ValueError as error:
            rows[way] = str(error)
    run = {
        "command": f"python examples/benchmarks/ways.py --early {early} --seed {seed}",
        "seed": seed,
        "images": [images.keys[k] for k in shown],
        "versions": {name: version(name) for name in ("sona-pipeline", "torch", "diffusers", "transformers")},
        "threads": torch.get_num_threads(),
        "minutes_of_this_run": round((time.monotonic() - started) / 60, 1),
    }
    table = pd.DataFrame.from_dict(found, orient="index").rename_axis("way").round(3)
    write_text(output / "results" / "run.json", json.dumps(run, indent=2) + "\n")
    write_text(output / "results" / "results.csv", table.to_csv(lineterminator="\n"))
    save_figure(sheet(rows), output / "results" / "sheet.png")
    print(table.to_string())


if __name__ == "__main__":
    cyclopts.run(main)
