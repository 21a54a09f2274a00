"""The paper's tables 1 to 10 in its own layout: our figures beside the paper's.

    python examples/benchmarks/run.py table-1
    python examples/benchmarks/run.py table-1 --scale imagenet200 --results runs/imagenet200/post-hoc

Our figures are those of the CIFAR-10 benchmark, which is much smaller than the paper's: what to compare is which row is
ahead. It has neither shifted images nor birds, so tables 6 and 7 have figures of ours with a full-size run only. With
the results of such a run, whose detectors are named "SONA", "cross-entropy" and as the rows of the paper, the figures
are of the paper's own data.
"""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter
from paper.tables import paper_table, shown
from rich import print as printed
from rich.table import Table

SMALL = Path(__file__).parent / "results" / "cifar10"
TITLES = {
    "1": "Table 1: OOD detection on ImageNet-200",
    "2": "Table 2: OOD labels",
    "3": "Table 3: terms of the guidance",
    "4": "Table 4: terms of the loss",
    "5": "Table 5: OOD detection on CIFAR-100",
    "6": "Table 6: full spectrum, ImageNet-200",
    "7": "Table 7: fine-grained, NABirds",
    "8": "Table 8: image editing",
    "9": "Table 9: other ways to corrupt images",
    "10": "Table 10: SONA images as a near-OOD test set",
}
NOTE = "Paper: AUROC in % on the data of the title. Ours: mean ± standard deviation over seeds, one seed without ±"
app = App(help="The paper's tables in its own layout: our figures beside the paper's.", version_flags=())


@app.default
def main(
    name: Annotated[Literal[tuple(f"table-{number}" for number in TITLES)], Parameter()],
    /,
    *,
    scale: Literal["small", "imagenet200"] = "small",
    results: Path | None = None,
    output: Path | None = None,
) -> None:
    """Print a table of the paper with our figures beside it.

    Args:
        name: "table-1" to "table-10".
        scale: "small" is the CIFAR-10 benchmark; "imagenet200" stands for any run at the size of the paper.
        results: Folder of results: of the tables of the CIFAR-10 benchmark (the stored ones by default), or of
            `sona evaluate` on the paper's data.
        output: CSV file to write the table to, besides.
    """
    number = name.removeprefix("table-")
    if scale != "small" and results is None:
        raise SystemExit("a full-size table is of your own run: give --results, the folder of `sona evaluate`")
    if results is not None and not results.is_dir():
        raise SystemExit(f"{results} is not there: give the folder of the results")
    found = paper_table(number, scale, results or SMALL)
    table = Table(*(columns := shown(found)), title=TITLES[number])
    for cells in found[columns].itertuples(index=False):
        table.add_row(*cells)
    where = "on CIFAR-10, 3,000 images, another scale" if scale == "small" else f"of {results}"
    printed(table, f"{NOTE}, {where}.")
    if output:
        found.to_csv(output, index=False)


if __name__ == "__main__":
    app()
