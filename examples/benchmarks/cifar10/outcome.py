"""What a table found, as Markdown, CSV and a plot, with everything that tells how it came about."""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pandas as pd
from judge import Judge
from matplotlib.figure import Figure
from records import THRESHOLDS
from sets import SECONDS

from sona_pipeline import (
    DIFFERENCES_NOTE,
    ImageSet,
    open_outlier_set,
    plain,
    read_rows,
    results_of,
    save_figure,
    score_columns,
    summary,
    with_spread,
    write_text,
)

VERSIONS = ("sona-pipeline", "torch", "diffusers", "transformers", "pytorch-ood")
NOTE = """In %, mean ± standard deviation over the seeds; the number of seeds is in the column "seeds". OOD is the
positive class. Choices are made by the validation columns; test images had no part in any."""
SETS_NOTE = """What the outliers look like, over all images of the set of one seed. Distances are between an outlier and
its source: root mean square in the latents, and perceptual (as LPIPS, with the judge's features). "still ID" is the
share that the judge, which knows the ID classes only, takes for the class of the source."""
WORDS = {"near_ood": "near", "far_ood": "far", "auroc": "AUROC", "fpr95": "FPR@95"}
Found = Mapping[str, pd.DataFrame]
"""Results of `evaluate_detectors` by the name of the test."""


@dataclass(frozen=True)
class Part:
    """A further table of an outcome, below the first: title, what the columns mean, rows, and the name of its CSV."""

    title: str
    note: str
    rows: pd.DataFrame
    file: str


@dataclass(frozen=True)
class Column:
    """A column of the table: the test that it is of, the group, and the metric."""

    test: str
    group: str
    metric: str

    @property
    def title(self) -> str:
        if self.group == "id":
            return "ID accuracy"
        words = [self.test, WORDS[self.group], WORDS[self.metric]]
        return " ".join(word for word in words if word != "test")


def columns_of(found: Found) -> list[Column]:
    """The columns that the results have: AUROC and FPR@95 of every group, and the accuracy of the last test."""
    columns = [
        Column(test, group, metric)
        for test, table in found.items()
        for group in ("near_ood", "far_ood")
        for metric in ("auroc", "fpr95")
        if (table["group"] == group).any()
    ]
    return [*columns, Column(list(found)[-1], "id", "accuracy")]


def write_outcome(
    folder: Path, title: str, found: Found, failed: Mapping[str, str], run: dict, parts: Sequence[Part] = ()
) -> None:
    """Write `results.md`, `results.csv` (all metrics and sets), `results.png`, `run.json`, and a CSV a part.

    Args:
        folder: for the files.
        title: of the table.
        found: by test.
        failed: rows that could not be made, with the reason.
        run: what tells how it came about.
        parts: what else there is to say.
    """
    rows = pd.concat([table.assign(test=test) for test, table in found.items()])
    write_text(folder / "results.csv", rows.to_csv(index=False, lineterminator="\n"))
    cells = cells_of(found)
    lines = [f"# {title}", "", NOTE, "", *table_of(cells)]
    lines += [f"\n{name} has no row: {plain(reason)}." for name, reason in failed.items()]
    _write_parts(folder, lines, parts, run)
    save_figure(_figure(found), folder / "results.png")


def write_parts(folder: Path, title: str, run: dict, parts: Sequence[Part]) -> None:
    """Write `results.md`, `run.json` and a CSV a part: an outcome that is only parts."""
    _write_parts(folder, [f"# {title}"], parts, run)


def _write_parts(folder: Path, lines: list[str], parts: Sequence[Part], run: dict) -> None:
    for part in parts:
        write_text(folder / part.file, part.rows.to_csv(index=False, lineterminator="\n"))
        lines += ["", f"## {part.title}", "", part.note, "", *table_of(part.rows.set_index(part.rows.columns[0]))]
    lines += ["", f"Made by `{run['command']}`; counts, versions and times are in `run.json`."]
    write_text(folder / "results.md", "\n".join(lines) + "\n")
    write_text(folder / "run.json", json.dumps(run, indent=2) + "\n")


def found_of(tables: Mapping[str, Sequence[pd.DataFrame]]) -> pd.DataFrame:
    """Results of `evaluate_detectors`, from the scores of records by row."""
    runs = []
    for name, seeds in tables.items():
        for scores in seeds:
            limits = scores.attrs[THRESHOLDS]
            results = {score: results_of(scores, score, limits.get(score)) for score in score_columns(scores)}
            runs.append((name, results))
    return summary(runs)


def package_versions() -> dict[str, str]:
    """Versions of what figures depend on."""
    return {name: version(name) for name in VERSIONS} | {"python": platform.python_version()}


def describe_run(
    command: str, counts: dict, seeds: int, seconds: Mapping[str, int], versions: Sequence[Mapping[str, str]]
) -> dict:
    """How a table came about: the command, counts of images, seeds, versions, and minutes of work.

    Args:
        command: that makes it.
        counts: of images.
        seeds: how many.
        seconds: of work, by folder and name of what was made; outlier sets are in "sets".
        versions: `package_versions` of each part of the work.
    """
    minutes = {"generation": 0.0, "training": 0.0}
    for name, count in seconds.items():
        minutes["generation" if name.startswith("sets/") else "training"] += count / 60
    return {
        "command": command,
        "seeds": list(range(seeds)),
        "images": counts,
        "minutes": {kind: round(count, 1) for kind, count in minutes.items()},
        "versions": {name: ", ".join(sorted({one[name] for one in versions})) for name in versions[0]},
    }


def describe_differences(found: Mapping[str, pd.DataFrame], baseline: str, file: str) -> Part:
    """A row a number of the differences that `compare` found, by test."""
    rows = pd.concat([differences.assign(test=test) for test, differences in found.items()])
    several = rows["score"].nunique() > 1
    rows = pd.DataFrame(
        {
            "row": rows["method"] + (", " + rows["score"] if several else ""),
            "test": rows["test"],
            "set": rows["set"].where(rows["set"] != "mean", rows["group"].replace(WORDS) + " mean"),
            "metric": rows["metric"].replace(WORDS),
            "difference": rows["difference"].map("{:+.1f}".format),
            "95 % interval": [f"{low:+.1f} to {high:+.1f}" for low, high in zip(rows["low"], rows["high"])],
            "verdict": rows["verdict"],
        }
    )
    return Part(f"Differences from {baseline}", DIFFERENCES_NOTE, rows, file)


def describe_sets(rows: Mapping[str, dict]) -> Part:
    """A row an outlier set, of what `description` said."""
    return Part("Outliers", SETS_NOTE, pd.DataFrame([{"set": name} | row for name, row in rows.items()]), "sets.csv")


def description(folder: Path, images: ImageSet, judge: Judge) -> dict[str, float | int]:
    """Of an outlier set: distances from the sources, saturation, and what the judge sees."""
    pairs, checks = open_outlier_set(folder, images), pd.DataFrame(read_rows(folder))
    sources, outliers = ([some.image(i) for i in range(len(some))] for some in (pairs.images, pairs.outliers))
    classes = [pairs.images.label_name(i) for i in range(len(pairs.images))]
    still = [said == name for said, name in zip(judge.names(outliers), classes)]
    return {
        "images": len(outliers),
        "mean stop step": round(float(checks["stop_step"].mean()), 1),
        "latent distance": round(float(checks["latent_distance"].mean()), 3),
        "perceptual distance": round(float(judge.distances(sources, outliers).mean()), 3),
        "saturation, %": round(100 * float(checks["saturation"].mean()), 2),
        "still ID, %": round(100 * sum(still) / len(still), 1),
        "seconds": int((folder / SECONDS).read_text()),
    }


def cells_of(found: Found) -> pd.DataFrame:
    """The table to be read: a row a method and score."""
    columns: dict[str, dict] = {"seeds": {}}
    for column in columns_of(found):
        columns[column.title] = {}
        for row in means_of(found[column.test], column).itertuples():
            name = f"{row.method}, {row.score}" if found[column.test]["score"].nunique() > 1 else row.method
            columns["seeds"][name] = row.n
            columns[column.title][name] = with_spread(row.mean, row.std)
    table = pd.DataFrame(columns)
    table.index.name = "row"
    return table


def means_of(table: pd.DataFrame, column: Column) -> pd.DataFrame:
    """The rows of a column in the results of its test: one a method and score."""
    name = "id" if column.group == "id" else "mean"
    return table[(table["group"] == column.group) & (table["set"] == name) & (table["metric"] == column.metric)]


def table_of(cells: pd.DataFrame) -> list[str]:
    head = [cells.index.name, *map(str, cells.columns)]
    lines = [f"| {' | '.join(head)} |", "|---" + "|--:" * (len(head) - 1) + "|"]
    return lines + [
        f"| {' | '.join([plain(str(name)), *map(str, row)])} |"
        for name, row in zip(cells.index, cells.astype(object).values)
    ]


def _figure(found: Found) -> Figure:
    """AUROC of every row, a point a group, with the standard deviation over seeds as a bar.

    Of several scores, a panel a group: down the axis scores or rows, whichever are more, and a point for each of the
    others.
    """
    parts = {c.title: means_of(found[c.test], c) for c in columns_of(found) if c.metric == "auroc"}
    rows, scores = (next(iter(parts.values()))[name].unique() for name in ("method", "score"))
    down, point = ("score", "method") if len(scores) > len(rows) else ("method", "score")
    panels = {title: dict(list(means.groupby(point, sort=False))) for title, means in parts.items()}
    if len(scores) == 1:
        panels = {"AUROC in %": parts}
    names = list(scores if down == "score" else rows)
    figure = Figure(figsize=(4.5 + 3 * len(panels), 1.2 + 0.32 * len(names)), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (title, points) in zip(axes, panels.items()):
        for k, (label, means) in enumerate(points.items()):
            places = [len(names) - 1 - names.index(name) for name in means[down]]
            shifted = [place + 0.12 * (len(points) - 1 - 2 * k) / 2 for place in places]
            spread = means["std"].astype(float).fillna(0)
            axis.errorbar(means["mean"], shifted, xerr=spread, fmt="os^D"[k % 4], capsize=2, label=label, markersize=4)
        axis.set_xlabel(title if len(panels) == 1 else f"{title} in %")
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(names)), names[::-1])
    axes[0].set_ylim(-0.6, len(names) - 0.4)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize="small")
    return figure
