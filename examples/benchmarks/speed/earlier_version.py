"""`sona generate` with its defaults beside version 0.1.0, on the same images."""

import subprocess
from pathlib import Path

from commands import ROOT, generate, sona_process, written
from timing import Comparison, Ratio, rounds_in_turn

from sona_pipeline import sample

COMMIT = "ee43f02"
"""Of version 0.1.0."""
IMAGES = 512
GOAL = 6.0


def compare(rounds: int) -> list[Comparison]:
    """Whole commands without Python's imports: images are read, the model is loaded, a folder is written."""
    with written(sample.id_images("train").take(range(IMAGES))) as (sources, folder):
        try:
            package = earlier_package(folder / "0.1.0")
        except (OSError, subprocess.CalledProcessError) as error:
            return [_comparison({}, f"not timed, since the history of the repository is not here ({error})")]
        with sona_process(package) as then, sona_process() as now:
            things = {
                "0.1.0": lambda: then(generate(sources, folder)),
                "defaults": lambda: now(generate(sources, folder)),
            }
            return [_comparison(rounds_in_turn(things, rounds))]


def _comparison(seconds: dict[str, list[float]], *notes: str) -> Comparison:
    ratios = (Ratio("0.1.0", "defaults", at_least=GOAL),) if seconds else ()
    return Comparison("embedded model", {"images": IMAGES}, IMAGES, "outliers", seconds, ratios, notes)


def earlier_package(folder: Path) -> Path:
    """A folder with the package as it was; CalledProcessError or OSError where the commit is not there."""
    folder.mkdir()
    archive = subprocess.run(["git", "archive", COMMIT, "sona_pipeline"], cwd=ROOT, capture_output=True, check=True)
    subprocess.run(["tar", "-x"], cwd=folder, input=archive.stdout, check=True)
    return folder
