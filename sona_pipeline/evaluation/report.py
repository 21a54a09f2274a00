"""Tables and pictures of the results of several methods, scores and seeds."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd
from rich.markup import escape
from rich.table import Table

from sona_pipeline.common import figures
from sona_pipeline.common.files import write_text
from sona_pipeline.common.names import unique_names
from sona_pipeline.evaluation.score_table import ScoreTable, by_set, score_columns

Run = tuple[str, Mapping[str, dict]]
"""Name of a method, and the results of one of its seeds by score, as `score_table.results_of` gives them."""

SPECTRA = {"standard": "Standard", "full": "Full spectrum: covariate-shifted images count as ID"}
GROUPS = {"near_ood": "near-OOD", "far_ood": "far-OOD", "covariate": "shifted", "id": "ID"}
METRICS = {"auroc": "AUROC", "fpr95": "FPR@95", "accuracy": "accuracy"}
"""What the tables to be read show, in the order of their columns; `results.csv` has all metrics."""
NOTE = "In %, mean ± standard deviation over runs. OOD is the positive class: FPR@95 is the share of ID images flagged"
NOTE += " when 95 % of the OOD images are."


DIFFERENCES_NOTE = """In percentage points, paired by seed. A bootstrap over test images and seeds gives the intervals;
"level" is where zero lies within. Intervals of few seeds say little about other seeds."""


def stems(methods: Sequence[str]) -> list[str]:
    """Names, without suffix, of the files with the scores of runs: each run's method, and its number in that."""
    names, count = unique_names(methods), Counter[str]()
    found = []
    for method in methods:
        found.append(f"{names[method]}-{count[method]}")
        count[method] += 1
    return found


def summary(runs: Sequence[Run]) -> pd.DataFrame:
    """The numbers of all runs as a long table; runs with one method name are seeds of that method.

    Returns:
        A row a number: `method`, `score`, `spectrum` ("standard" or "full"), `group` ("near_ood", "far_ood", "id" or
        "covariate"), `set` (or "mean"), `metric` (`auroc`, `fpr95`, `aupr_in`, `aupr_out`, `accuracy`, `flagged`),
        `mean` and `std` over the runs in percent, and their count `n`; of `flagged`, over those with a threshold of
        that score. `std` divides by n - 1; of one run it is empty.

    Raises:
        ValueError: there are no runs, or those of a method differ in their sets.
    """
    rows = [
        (method, score, *row) for method, by_score in runs for score, part in by_score.items() for row in _rows(part)
    ]
    if not rows:
        raise ValueError(f"{len(runs)} runs without results: nothing to report")
    names = ["method", "score", "spectrum", "group", "set", "metric"]
    values = pd.DataFrame(rows, columns=[*names, "value"]).groupby(names, sort=False)["value"]
    table = values.agg(mean="mean", std="std", n="count").reset_index()
    in_every_run = table[table["metric"] != "flagged"]
    for (method, score), counts in in_every_run.groupby(["method", "score"], sort=False)["n"]:
        if counts.nunique() > 1:
            raise ValueError(f"runs of {method!r} with score {score!r} have different sets: give them different names")
    return table.astype({"std": "Float64"})


def _rows(results: dict) -> Iterator[tuple[str, str, str, str, float]]:
    for spectrum, part in (("standard", results), ("full", results.get("full_spectrum"))):
        for row in _numbers(part) if part else ():
            yield spectrum, *row


def _numbers(results: dict) -> Iterator[tuple[str, str, str, float]]:
    yield "id", "id", "accuracy", results["id_accuracy"]
    if "id_flagged" in results:
        yield "id", "id", "flagged", results["id_flagged"]
    for name, value in results.get("accuracy", {}).items():
        yield "covariate", name, "accuracy", value
    for group in ("near_ood", "far_ood"):
        for name, row in results[group].items():
            for metric, value in row.items():
                yield group, name, metric, value


def write_report(
    folder: str | Path,
    runs: Sequence[Run],
    tables: Mapping[str, ScoreTable],
    differences: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Write what several runs found, each file whole or not at all.

    `results.json` (numbers of each run, and the summary), `results.csv` (the summary), `results.md` and `results.tex`
    (tables to be read, a row a method and score; the Markdown also has what a search chose, the LaTeX needs the package
    booktabs), `scores.png` (histograms) and `roc.png` (ROC curves, if there are OOD sets); with differences from a
    baseline also `differences.csv`, and a table of them in `results.md`.

    Args:
        folder: made if it is not there.
        runs: see `summary`.
        tables: for each method to be drawn, the scores of one run.
        differences: of `comparison.compare`.

    Returns:
        The summary.

    Raises:
        ValueError: see `summary`.
    """
    folder, found = Path(folder), summary(runs)
    records = found.astype(object).where(found.notna(), None).to_dict("records")
    content = {"runs": [{"method": name, "results": results} for name, results in runs], "summary": records}
    write_text(folder / "results.json", json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    write_text(folder / "results.csv", found.to_csv(index=False, lineterminator="\n"))
    compared = "" if differences is None else differences_as_markdown(differences)
    write_text(folder / "results.md", _as_markdown(found) + compared + _searched_as_markdown(runs))
    if differences is not None:
        write_text(folder / "differences.csv", differences.to_csv(index=False, lineterminator="\n"))
    write_text(folder / "results.tex", _as_latex(found))
    columns = dict.fromkeys(score for table in tables.values() for score in score_columns(table))
    lines = {f"{n}, {score}": (table, score) for score in columns for n, table in tables.items() if score in table}
    if lines:
        figures.save_figure(
            figures.scores_figure({k: _all_sets(*line) for k, line in lines.items()}), folder / "scores.png"
        )
    panels = {}
    for group in ("near_ood", "far_ood"):
        curves = {k: (by_set(*line, "id")["id"], list(by_set(*line, group).values())) for k, line in lines.items()}
        if curves := {k: curve for k, curve in curves.items() if curve[1]}:
            panels[GROUPS[group]] = curves
    if panels:
        figures.save_figure(figures.roc_figure(panels), folder / "roc.png")
    return found


def table(found: pd.DataFrame) -> Table:
    """A summary for the terminal: a section a data set, a row a method and score."""
    printed = Table(title="in %; OOD is the positive class")
    for name in ("", "method", "score"):
        printed.add_column(name, overflow="fold")
    for name in METRICS.values():
        printed.add_column(name, justify="right", no_wrap=True)
    for spectrum in SPECTRA:
        rows, columns = _wide(found, spectrum)
        for title in dict.fromkeys(title for title, _ in columns):
            head = title if spectrum == "standard" else f"{title}, full spectrum"
            for (method, score, _), cells in rows.items():
                if any((title, metric) in cells for metric in METRICS.values()):
                    numbers = [cells.get((title, metric), "") for metric in METRICS.values()]
                    printed.add_row(escape(head), escape(method), score, *numbers)
                    head = ""
            printed.add_section()
    return printed


Column = tuple[str, str]
"""Title of a data set, and of a metric."""


def _wide(found: pd.DataFrame, spectrum: str) -> tuple[dict[tuple[str, str, int], dict[Column, str]], list[Column]]:
    """Cells by (method, score, runs) and column, and the columns in their order, for the tables to be read."""
    part = found[(found["spectrum"] == spectrum) & found["metric"].isin(list(METRICS))]
    rows: dict[tuple[str, str, int], dict[Column, str]] = {}
    order: dict[Column, tuple[int, bool]] = {}
    for row in part.itertuples():
        column = (_title(row.group, row.set), METRICS[row.metric])
        order[column] = (list(GROUPS).index(row.group), row.set == "mean")
        rows.setdefault((row.method, row.score, row.n), {})[column] = with_spread(row.mean, row.std)
    return rows, sorted(order, key=order.__getitem__)


def _title(group: str, name: str) -> str:
    return GROUPS[group] if group == "id" else f"{GROUPS[group]} {name}"


def with_spread(mean: float, std: float) -> str:
    """A mean and its standard deviation, if there is one, with two decimals."""
    return f"{mean:.2f}" if pd.isna(std) else f"{mean:.2f} ± {std:.2f}"


def _as_markdown(found: pd.DataFrame) -> str:
    lines = ["# Results", "", NOTE]
    for spectrum, title in SPECTRA.items():
        rows, columns = _wide(found, spectrum)
        if not rows:
            continue
        head = ["method", "score", "runs", *(f"{name} {metric}" for name, metric in columns)]
        lines += ["", f"## {title}", "", _markdown_row(head), "|" + "---|" * 2 + "--:|" * (len(head) - 2)]
        lines += [_markdown_row([*map(str, row), *(cells.get(c, "") for c in columns)]) for row, cells in rows.items()]
    return "\n".join(lines) + "\n"


def differences_as_markdown(differences: pd.DataFrame) -> str:
    """Differences from a baseline as a section: a row a number, with its interval and verdict."""
    lines = ["", f"## Differences from {plain(differences.attrs['baseline'])}", "", DIFFERENCES_NOTE, ""]
    lines += [_markdown_row(["method", "score", "set", "metric", "difference", "95 % interval", "verdict"])]
    lines += ["|---|---|---|---|--:|--:|---|"]
    for row in differences.itertuples():
        cells = row.method, row.score, _title(row.group, row.set), METRICS[row.metric]
        numbers = f"{row.difference:+.2f}", f"{row.low:+.2f} to {row.high:+.2f}"
        lines.append(_markdown_row([*cells, *numbers, row.verdict]))
    return "\n".join(lines) + "\n"


def _searched_as_markdown(runs: Sequence[Run]) -> str:
    """The parameters that were searched, a row a run and score; nothing if there was no search."""
    rows = [
        [method, score, ", ".join(f"{k}={v}" for k, v in part["parameters"].items()), f"{part['validation_auroc']:.2f}"]
        for method, by_score in runs
        for score, part in by_score.items()
        if "validation_auroc" in part
    ]
    if not rows:
        return ""
    head = ["method", "score", "parameters", "AUROC on validation images"]
    lines = ["", "## Parameters, by search on validation images", "", _markdown_row(head), "|---|---|---|--:|"]
    return "\n".join([*lines, *map(_markdown_row, rows)]) + "\n"


def _markdown_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(map(plain, cells)) + " |"


def plain(text: str) -> str:
    """A text on one line, with what Markdown would take for its own escaped."""
    return re.sub(r"([\\`*_\[\]<>|~])", r"\\\1", " ".join(text.split()))


def _as_latex(found: pd.DataFrame) -> str:
    lines = [f"% {NOTE}", r"% \usepackage{booktabs}"]
    for spectrum, title in SPECTRA.items():
        rows, columns = _wide(found, spectrum)
        if not rows:
            continue
        widths = pd.Series([name for name, _ in columns]).value_counts(sort=False)
        spans = [rf"\multicolumn{{{width}}}{{c}}{{{_latex(name)}}}" for name, width in widths.items()]
        lines += ["", f"% {title}", rf"\begin{{tabular}}{{llr{'r' * len(columns)}}}", r"\toprule"]
        lines += [" & ".join(["", "", "", *spans]) + r" \\"]
        lines += [_latex_row(["method", "score", "runs", *(metric for _, metric in columns)]), r"\midrule"]
        lines += [_latex_row([*map(str, row), *(cells.get(c, "") for c in columns)]) for row, cells in rows.items()]
        lines += [r"\bottomrule", r"\end{tabular}"]
    return "\n".join(lines) + "\n"


def _latex_row(cells: Iterable[str]) -> str:
    return " & ".join(map(_latex, cells)) + r" \\"


_LATEX = {char: rf"\{char}" for char in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "[": "{[}",
    "±": r"$\pm$",
}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(char, char) for char in " ".join(text.split()))


def _all_sets(table: ScoreTable, score: str) -> dict:
    groups = ("id", "covariate", "near_ood", "far_ood")
    return {name: values for group in groups for name, values in by_set(table, score, group).items()}
