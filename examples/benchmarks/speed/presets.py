"""`sona generate` with one preset beside the other."""

from commands import generate, sona_process, written
from timing import Comparison, Ratio, rounds_in_turn

from sona_pipeline import PRESETS, sample

PAPER = "paper"
IMAGES = 256


def compare(rounds: int) -> list[Comparison]:
    """Whole commands without Python's imports, as for version 0.1.0."""
    with written(sample.id_images("train").take(range(IMAGES))) as (sources, folder), sona_process() as sona:
        things = {name: lambda name=name: sona(generate(sources, folder, "--preset", name)) for name in PRESETS}
        seconds = rounds_in_turn(things, rounds)
    ratios = tuple(Ratio(PAPER, name) for name in PRESETS if name != PAPER)
    return [Comparison("embedded model", {"images": IMAGES}, IMAGES, "outliers", seconds, ratios)]
