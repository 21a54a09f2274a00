"""A plot of what rows of a table find with more and more data."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

PANELS = (
    ("near_ood", "auroc", "near-OOD AUROC in %"),
    ("far_ood", "auroc", "far-OOD AUROC in %"),
    ("id", "accuracy", "ID accuracy in %"),
)


def growth_figure(found: Mapping[int, pd.DataFrame]) -> Figure:
    """Means over the seeds by the number of ID training images, a line a row, with the standard deviation as a bar.

    Args:
        found: `results.csv` of `outcome.write_outcome` by the number of ID training images, of which the rows of the
            test images are drawn.
    """
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    for axis, (group, metric, title) in zip(figure.subplots(1, len(PANELS)), PANELS):
        for number, method in enumerate(dict.fromkeys(name for table in found.values() for name in table["method"])):
            means = {
                size: row for size, table in found.items() if (row := _row(table, method, group, metric)) is not None
            }
            spread = [0 if pd.isna(row["std"]) else row["std"] for row in means.values()]
            style = {"marker": "osD^vP"[number % 6], "capsize": 2, "markersize": 4}
            axis.errorbar(list(means), [row["mean"] for row in means.values()], yerr=spread, label=method, **style)
        axis.set_xscale("log")
        axis.set_xticks(list(found), [f"{size:,}" for size in found])
        axis.minorticks_off()
        axis.set_xlabel("ID training images")
        axis.set_title(title)
        axis.grid(alpha=0.3)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize="small")
    return figure


def _row(table: pd.DataFrame, method: str, group: str, metric: str) -> pd.Series | None:
    name = "id" if group == "id" else "mean"
    columns = {"test": "test", "method": method, "group": group, "set": name, "metric": metric}
    rows = table[(table[list(columns)] == pd.Series(columns)).all(axis=1)]
    return rows.iloc[0] if len(rows) else None
