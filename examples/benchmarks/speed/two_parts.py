"""Two parts of a set made side by side, each with half of the threads, beside one run that makes all of it."""

from commands import generate, sona_process, written
from timing import Comparison, Ratio, rounds_in_turn

from sona_pipeline import sample

IMAGES = 256
PARTS = 2
THREADS = 2
"""Of the one run."""


def compare(rounds: int) -> list[Comparison]:
    """The parts alone, and the parts with `sona merge`, which makes of them the very set that one run gives."""
    with (
        written(sample.id_images("train").take(range(IMAGES))) as (sources, folder),
        sona_process(threads=THREADS) as whole,
        sona_process(threads=THREADS // PARTS) as first,
        sona_process(threads=THREADS // PARTS) as second,
    ):

        def side_by_side() -> list[str]:
            commands = [generate(sources, folder, "--part", f"{part}/{PARTS}") for part in range(1, PARTS + 1)]
            for sona, words in zip((first, second), commands):
                sona.start(words)
            for sona in (first, second):
                sona.wait()
            return [words[-1] for words in commands]

        def merged() -> None:
            parts = side_by_side()
            first(["merge", *parts, "--output", f"{parts[0]}-merged"])

        things = {
            "one run": lambda: whole(generate(sources, folder)),
            "two parts": side_by_side,
            "two parts, merged": merged,
        }
        seconds = rounds_in_turn(things, rounds)
    ratios = (Ratio("two parts", "one run"), Ratio("two parts, merged", "one run"))
    counts = {"images": IMAGES, "threads": THREADS}
    return [Comparison("embedded model", counts, IMAGES, "outliers", seconds, ratios)]
