"""`generate_outliers` beside the loops that a user of diffusers would write, and beside bare UNet calls."""

import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from bare_denoiser import BareDenoiser
from planned import SETTINGS, arguments_of, plan_of
from timing import Comparison, Ratio, rounds_in_turn

from sona_pipeline import OutputSettings, Plan, SONAPipeline, generate_outliers, load_pipeline

IMAGES = 64
BATCH_SIZE = 32


def compare(rounds: int) -> list[Comparison]:
    """All make the outliers of one plan, as PNG files; only `generate_outliers` writes reconstructions and checks."""
    with tempfile.TemporaryDirectory() as place:
        return [_compare(rounds, (Path(place) / str(number) for number in count()))]


def _compare(rounds: int, new_folders: Iterator[Path]) -> Comparison:
    pipe, plan = load_pipeline("tiny", "cpu"), plan_of(IMAGES)
    writing = OutputSettings(batch_size=BATCH_SIZE)

    def generate() -> None:
        generate_outliers(plan.images, pipe, next(new_folders), SETTINGS, writing)

    bare = BareDenoiser(pipe.unet, generate)
    things = {
        "bare UNet": bare,
        "generate_outliers": generate,
        "loop, image by image": lambda: plain_loop(pipe, plan, 1, next(new_folders)),
        "loop, batch by batch": lambda: plain_loop(pipe, plan, BATCH_SIZE, next(new_folders)),
    }
    ratios = (
        Ratio("loop, image by image", "generate_outliers", at_least=1.2),
        Ratio("loop, batch by batch", "generate_outliers"),
        Ratio("generate_outliers", "bare UNet"),
    )
    counts = {"images": len(plan), "batch size": BATCH_SIZE, "UNet rows": bare.rows}
    return Comparison("embedded model", counts, len(plan), "outliers", rounds_in_turn(things, rounds), ratios)


def plain_loop(pipe: SONAPipeline, plan: Plan, batch_size: int, folder: Path) -> None:
    """Images in folder order, `batch_size` of them in each call of the pipeline, and a PNG file an outlier."""
    folder.mkdir(parents=True)
    for start in range(0, len(plan), batch_size):
        indices = range(start, min(start + batch_size, len(plan)))
        for i, outlier in zip(indices, pipe(**arguments_of(pipe, plan, indices)).images):
            outlier.save(folder / f"{i}.png")
