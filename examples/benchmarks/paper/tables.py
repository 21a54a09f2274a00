"""A table of the paper with our figures in it."""

from pathlib import Path

import pandas as pd
from paper.ours import COLUMNS, OURS, SCORES, SMALL_ONLY, Ours, of_full_size

from sona_pipeline import with_spread

FIGURES = Path(__file__).parent / "figures.csv"
MISSING = "-"
NEAR_TESTS = ("SONA",)
"""Tests of the table `near-test`, each of one set, that have a column in the paper."""


def our_figures(results: Path, scale: str, number: str, row: str) -> pd.DataFrame | None:
    """The results that stand for a row, indexed by group, set and metric; None if there are none."""
    if scale == "small":
        ours = OURS[number].get(row)
        file = results / ours.table / "results.csv" if ours else None
    else:
        ours = Ours("", "cross-entropy", SCORES[row]) if row in SCORES else of_full_size(row)
        file = results / "results.csv"
    if ours is None or file is None or not file.exists():
        return None
    found = pd.read_csv(file)
    spectrum = "full" if number == "6" else "standard"
    chosen = (found["method"] == ours.row) & (found["score"] == ours.score) & (found["spectrum"] == spectrum)
    if "test" in found:
        chosen &= found["test"].isin(("test", *NEAR_TESTS))
    found = found[chosen]
    return found.set_index(["group", "set", "metric"]) if len(found) else None


def our_cell(found: pd.DataFrame | None, column: str, scale: str) -> str:
    """Mean and spread of a column, or a dash."""
    place = COLUMNS.get(column)
    if found is None or place is None or place not in found.index or (scale == "small" and column not in SMALL_ONLY):
        return MISSING
    cell = found.loc[place]
    return with_spread(float(cell["mean"]), cell["std"])


def paper_table(number: str, scale: str, results: Path) -> pd.DataFrame:
    """A table of the paper: a row of it, and in each column what the paper has and what we have."""
    figures = pd.read_csv(FIGURES, dtype={"table": str, "spread": str}, keep_default_na=False)
    figures = figures[figures["table"] == number]
    columns, rows = figures["column"].unique(), []
    for row, own in figures.groupby("row", sort=False):
        found = our_figures(results, scale, number, row)
        cells = own.set_index("column")
        line = {"row": row}
        for column in columns:
            value = cells.loc[column] if column in cells.index else None
            spread = f" ± {value['spread']}" if value is not None and value["spread"] else ""
            line[f"{column}, paper"] = f"{float(value['value']):.2f}{spread}" if value is not None else MISSING
            line[f"{column}, ours"] = our_cell(found, column, scale)
        rows.append(line)
    return pd.DataFrame(rows)


def shown(found: pd.DataFrame) -> list[str]:
    """The columns to print: those that we have figures in, beside the paper's; without any, all of the paper's."""
    ours = [column for column in found if column.endswith(", ours") and (found[column] != MISSING).any()]
    pairs = [column for name in ours for column in (name.replace(", ours", ", paper"), name)]
    return ["row", *(pairs or [column for column in found if column.endswith(", paper")])]
