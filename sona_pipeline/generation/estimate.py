"""What a generation would cost, from a short measurement."""

from __future__ import annotations

import math
import shutil
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from sona_pipeline.data.remote import address_of
from sona_pipeline.generation.batches import processes_for
from sona_pipeline.generation.make import OutlierMaker, Work, image_form, kept_form
from sona_pipeline.generation.plan import Plan
from sona_pipeline.generation.settings import OutputSettings
from sona_pipeline.generation.ways import WAYS
from sona_pipeline.pipelines.core import SONAMixin


@dataclass(frozen=True)
class Estimate:
    """What a run would cost.

    Attributes:
        images, unet_rows: counts.
        rows_per_second: of this device, with the time of the other stages counted in.
        seconds: of the whole run on one such device.
        bytes: of the files.
        free_bytes: on the disk of the output folder; None at an address.
    """

    images: int
    unet_rows: int
    rows_per_second: float
    seconds: float
    bytes: int
    free_bytes: int | None


def estimate(
    plan: Plan, pipe: SONAMixin, output: Path, batch_size: int, writing: OutputSettings | None = None
) -> Estimate:
    """Make part of one batch to see what the whole plan would cost; nothing is written.

    The batch is made once to warm up and twice more, with few steps only; the difference of the times is the cost of
    a step.

    Args:
        plan: what would be made.
        pipe: a loaded pipeline.
        output: folder that the set would go to.
        batch_size: images that are made together.
        writing: what would be written.

    Raises:
        ValueError: none of the images in the batch can be read.
    """
    free_bytes = None if address_of(output) else _free_bytes(output)
    if not len(plan):
        return Estimate(0, 0, 0.0, 0.0, 0, free_bytes)
    plan, writing = replace(plan, settings=replace(plan.settings, reject=())), writing or OutputSettings()
    form = kept_form(image_form(pipe, plan.settings.size)[0], writing)
    maker = OutlierMaker(pipe, plan, form=form, reconstructions=writing.reconstructions)
    few, many = 1, min(4, plan.settings.num_inference_steps)
    size = min(batch_size, len(plan))
    work = maker.read(plan.batch(np.argsort(plan.hashes, kind="stable")[:size]))
    if not work.items:
        raise ValueError(f"none of {size} images could be read; the first: {work.rejects[0]['reason']}")
    timed = {}
    processes = processes_for(maker, math.ceil(len(plan) / batch_size))
    with _threads(torch.get_num_threads() if processes == 1 else 1):
        for steps in (few, few, many):
            started = time.perf_counter()
            short = maker.denoise(maker.encode(Work("", work.items, images=work.images)), steps)
            samples = maker.finish(maker.decode(short)).samples
            timed[steps] = (time.perf_counter() - started) / processes
    more = timed[many] - timed[few]
    per_step = more / (many - few) if more > 0 else timed[many] / many
    per_row = per_step / (3 * len(work.items))
    overhead = max(0.0, timed[few] - few * per_step) / len(work.items)
    seconds = per_row * plan.unet_rows + overhead * len(plan)
    bytes_each = statistics.mean(len(s.outlier) + len(s.reconstruction or b"") + 600 for s in samples) if samples else 0
    return Estimate(
        images=len(plan),
        unet_rows=plan.unet_rows,
        rows_per_second=plan.unet_rows / max(seconds, 1e-9),
        seconds=seconds,
        bytes=round(bytes_each * len(plan)),
        free_bytes=free_bytes,
    )


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """So many threads of torch, for a while."""
    earlier = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(earlier)


def _free_bytes(output: Path) -> int:
    return shutil.disk_usage(next(folder for folder in (output, *output.resolve().parents) if folder.exists())).free


def described(plan: Plan, cost: Estimate, part: str | None = None, *, preset: str, scheduler: str) -> list[str | Table]:
    """What a run, or its part, would do and cost, for the console."""
    settings, free = plan.settings, cost.free_bytes
    table = Table("source", "class", "OOD label", "stop step", "file name", title="The first rows of the plan")
    uses_label = WAYS[settings.way].uses_label
    for item in map(plan.__getitem__, range(min(5, len(plan)))):
        label = item.ood_label if uses_label else ""
        cells = plan.images.keys[item.index], plan.images.label_name(item.index), label
        table.add_row(*map(escape, cells), str(item.stop_step), escape(item.file_name))
    return [
        *([f"Part:       {part}"] if part else []),
        f"Images:     {cost.images} of {len(set(plan.images.labels))} classes",
        f"OOD labels: {len(settings.ood_labels)}, chosen by the rule '{settings.label_choice}'",
        f"Method:     {settings.num_inference_steps} steps of {scheduler}, guidance scale {settings.guidance_scale:g},"
        f" regions of {settings.mask_threshold:g}, with the preset '{preset}'",
        f"Rows:       {cost.unet_rows} in the denoiser, at {cost.rows_per_second:.0f} a second on this device",
        f"Time:       about {timedelta(seconds=round(cost.seconds))}, divided by the number of such devices",
        f"Disk:       about {decimal(cost.bytes)}" + ("" if free is None else f"; {decimal(free)} are free"),
        table,
    ]
