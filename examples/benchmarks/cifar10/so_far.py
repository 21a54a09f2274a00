"""What the records of a table say on validation images, of the rows and seeds that there are."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from outcome import WORDS, cells_of, found_of, table_of
from rows import Table

from sona_pipeline import compare, read_scores

SHOWN = (("near_ood", "auroc"), ("near_ood", "fpr95"), ("far_ood", "auroc"), ("id", "accuracy"))
NOTE = """In % on validation images, mean ± standard deviation over the seeds that there are."""
DIFFERENCES = """Differences from "{}", in percentage points, over the seeds that both have, with 95 % intervals of a
bootstrap over images and seeds. Intervals of one seed say nothing about other seeds."""


def recorded(folder: Path, table: Table) -> dict[str, dict[int, pd.DataFrame]]:
    """The scores in a folder of records, by row and seed."""
    found: dict[str, dict[int, pd.DataFrame]] = {}
    for name, seed, stem in table.detectors(table.seeds):
        if (path := folder / f"{stem}.parquet").exists():
            found.setdefault(name, {})[seed] = read_scores(path)
    return {name: found[name] for name in table.rows if name in found}


def text_so_far(table: Table, found: Mapping[str, Mapping[int, pd.DataFrame]]) -> str:
    """The table and the differences from its first baseline, as Markdown."""
    cells = cells_of({"validation": found_of({name: list(by_seed.values()) for name, by_seed in found.items()})})
    lines = [f"# {table.title}, so far", "", NOTE, "", *table_of(cells)]
    first = next(iter(table.baselines), None)
    if first in found and len(differences := _differences(found, first)):
        lines += ["", DIFFERENCES.format(first), "", *table_of(differences)]
    return "\n".join(lines) + "\n"


def _differences(found: Mapping[str, Mapping[int, pd.DataFrame]], baseline: str) -> pd.DataFrame:
    rows: dict[str, dict[str, str | int]] = {}
    for name, by_seed in found.items():
        common = [seed for seed in by_seed if seed in found[baseline]]
        if name == baseline or not common:
            continue
        pair = {row: [found[row][seed] for seed in common] for row in (baseline, name)}
        for (score,), of_score in compare(pair, baseline).groupby(["score"], sort=False):
            cells: dict[str, str | int] = {"seeds": len(common)}
            for group, metric in SHOWN:
                words = f"{WORDS.get(group, 'ID')} {WORDS.get(metric, metric)}"
                cells[words] = _cell(of_score, group, metric)
            rows[f"{name}, {score}"] = cells
    differences = pd.DataFrame.from_dict(rows, orient="index")
    differences.index.name = "row"
    return differences


def _cell(differences: pd.DataFrame, group: str, metric: str) -> str:
    is_set = differences["set"] == ("id" if group == "id" else "mean")
    shown = differences[(differences["group"] == group) & is_set & (differences["metric"] == metric)]
    return "".join(f"{row.difference:+.1f} ({row.low:+.1f} to {row.high:+.1f})" for row in shown.itertuples())
