"""What a generated outlier costs beside the peers (bare UNet, SEGA, four rows a step, loops) and beside version 0.1.0.

    python examples/benchmarks/speed/run.py
    python examples/benchmarks/speed/run.py --only a --only d

Each part is a module of this folder. The things that a part compares are timed in turn, round by round; what counts is
the ratio within a round, by its median, with the range over the rounds. Results land in `OUTPUT` as `results.json` and
`results.md`; parts that are not run keep their earlier ones there.
"""

import json
import time
from pathlib import Path
from typing import Annotated

import bare_unet
import cpu_settings
import cyclopts
import data_set
import earlier_version
import family_calls
import four_rows
import kept_form
import mask_routes
import object_storage
import presets
import scoring
import sega
import training_step
import two_parts
from cyclopts.types import PositiveInt
from report import environment, part_table, tables
from timing import SEED

PARTS = {
    "a": bare_unet,
    "b": sega,
    "c": four_rows,
    "d": data_set,
    "e": mask_routes,
    "f": training_step,
    "g": scoring,
    "h": cpu_settings,
    "i": earlier_version,
    "j": presets,
    "k": kept_form,
    "l": object_storage,
    "m": two_parts,
    "n": family_calls,
}
OUTPUT = Path(__file__).parent.parent / "results" / "speed"
TITLES = {letter: module.__doc__.splitlines()[0].rstrip(".") for letter, module in PARTS.items()}
LIST = "; ".join(f"{letter}: {title}" for letter, title in TITLES.items())


PartNames = Annotated[
    list[str],
    cyclopts.Parameter(choices=PARTS, negative=(), help=f"A part to run; may be repeated. All by default. {LIST}"),
]
app = cyclopts.App(version_flags=())


@app.default
def main(*, only: PartNames | None = None, rounds: PositiveInt = 5, output: Path = OUTPUT) -> None:
    """Run the parts, and print and write their results one by one.

    Args:
        rounds: Rounds that count, at least 1, after one to warm up.
        output: Folder of the results.
    """
    for letter in sorted(set(only or PARTS)):
        part = run_part(letter, rounds)
        print(part_table(letter, part), end="\n\n", flush=True)
        keep(output, letter, part)


def run_part(letter: str, rounds: int) -> dict:
    """The results of a part, with all that tells them from others."""
    started = time.monotonic()
    comparisons = [one.as_dict() for one in PARTS[letter].compare(rounds)]
    return {
        "title": TITLES[letter],
        "seed": SEED,
        "rounds": rounds,
        "seconds_of_run": round(time.monotonic() - started, 1),
        "environment": environment(),
        "comparisons": comparisons,
    }


def keep(output: Path, letter: str, part: dict) -> None:
    """Write the results of a part beside those that are there."""
    path = output / "results.json"
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    parts = dict(sorted((earlier | {letter: part}).items()))
    output.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(parts, indent=2) + "\n", encoding="utf-8")
    (output / "results.md").write_text(tables(parts), encoding="utf-8")


if __name__ == "__main__":
    app()
