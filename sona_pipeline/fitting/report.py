"""The report of a run: one HTML file that needs no other and no network."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from sona_pipeline.common.files import read_json, versions, write_bytes
from sona_pipeline.evaluation.metrics import ood_metrics
from sona_pipeline.evaluation.report import GROUPS
from sona_pipeline.evaluation.score_table import by_set
from sona_pipeline.fitting.both import FOLDERS, Judged
from sona_pipeline.fitting.pictures import curves, outliers_by_strength, surest_and_wrong
from sona_pipeline.fitting.verdict import headline, mean_flagged, percent, sentences
from sona_pipeline.generation.inspection import MEANING, QUANTILES, find_shortcuts, in_words, inspect_outliers

if TYPE_CHECKING:
    from sona_pipeline.fitting.check_classes import Checks
    from sona_pipeline.fitting.job import Fitted

MOST_CLASSES = 200
"""Rows that the table by class has at most; the classes that are named worst come first."""

METRICS = {"auroc": "AUROC", "fpr95": "FPR@95"}
NAMES = ("SONA", "plain", "as it was")
"""What the detectors are called in the heads of columns, in the order of `FOLDERS`."""


class Table(NamedTuple):
    """A table: heads of its columns, of which the first are texts and the others numbers, and its rows."""

    heads: list[str]
    texts: int
    rows: list[list[str]]
    note: str = ""


def write_report(fitted: Fitted, path: Path, command: str) -> None:
    """Write the report of a run as one HTML file.

    Args:
        fitted: what came of the run.
        path: of the file.
        command: that repeats the run; empty if there is none.
    """
    environment = Environment(
        loader=PackageLoader("sona_pipeline.fitting", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.jinja").render(shown(fitted, command))
    write_bytes(path, page.encode("utf-8", "backslashreplace"))


def shown(fitted: Fitted, command: str) -> dict:
    """What the page shows, by the names that the template has for it."""
    output, judged, checks = fitted.output, fitted.judged, fitted.checks
    folds = checks.folds if checks else {}
    drawn = {"": judged} if judged.has("near_ood") or judged.has("far_ood") else {}
    return {
        "headline": headline(fitted),
        "sentences": sentences(fitted),
        "checks": check_table(checks) if checks else None,
        "curves": [*curves(drawn), *curves(folds)],
        "sets": set_table(judged),
        "has_original": len(judged.detectors) == len(FOLDERS),
        "classes": class_table(judged),
        "kinds": surest_and_wrong(judged, folds),
        **_of_outliers(fitted, output / "generated"),
        "commands": list(commands(output, command)),
        "settings": settings_table(output / "fit.json"),
        "versions": versions(),
    }


def _of_outliers(fitted: Fitted, folder: Path) -> dict:
    """Outliers, their quality checks, and how well a probe tells them apart."""
    found = inspect_outliers(folder)
    shortcuts = find_shortcuts(folder, found, fitted.pairs.images)
    rows = [
        [name, *(f"{value:.3g}" for value in np.percentile(values, QUANTILES))] for name, values in found.checks.items()
    ]
    return {
        "pairs": outliers_by_strength(fitted.pairs, {row["file_name"]: row["ood_label"] for row in found.rows}),
        "made": f"{len(found.rows)} outliers of {len(found.classes)} classes, {len(found.labels)} OOD labels.",
        "quality": Table(["check", *(f"{share} %" for share in QUANTILES)], 1, rows),
        "shortcuts": [f"{said}." for said in [*map(in_words, shortcuts), *([MEANING] if shortcuts else [])]],
    }


def _heads(what: str, judged: Judged) -> list[str]:
    """Heads of columns that say the same of each detector."""
    return [f"{what}, {name}" for name, _ in zip(NAMES, judged.detectors)]


def _compared(judged: Judged) -> list[str]:
    """Heads of the columns that compare the detectors."""
    return [head for metric in METRICS.values() for head in (*_heads(metric, judged), f"{metric}, difference")]


def check_table(checks: Checks) -> Table:
    """A row for each class that was held out, and for their mean."""
    rows = []
    for name in [*checks.folds, ""]:
        flagged = checks.folds[name].flagged("near_ood") if name else mean_flagged(checks)
        found = checks.differences[checks.differences["held_out"] == name].set_index("metric")
        cells = [name or "mean", *map(percent, flagged)]
        for metric in METRICS:
            row = found.loc[metric]
            cells += [f"{row['ours']:.1f}", f"{row['theirs']:.1f}", _gap(row)]
        rows.append(cells)
    judged = next(iter(checks.folds.values()))
    return Table(["held-out class", *_heads("flagged", judged), *_compared(judged)], 1, rows)


def set_table(judged: Judged) -> Table:
    """A row for each test set."""
    assert judged.differences is not None
    gaps = judged.differences.set_index(["group", "set", "metric"])
    heads, compared, rows = ["test set", *_heads("flagged", judged)], _compared(judged), []
    for group in ("near_ood", "far_ood"):
        known, unknown = ([by_set(table, judged.score, one) for table in judged.tables] for one in ("id", group))
        for name in judged.names(group):
            found = [ood_metrics(one["id"], other[name]) for one, other in zip(known, unknown)]
            cells = [f"{GROUPS[group]} {name}", *map(percent, judged.flagged(group, name))]
            for metric in METRICS:
                cells += [*(f"{one[metric]:.1f}" for one in found), _gap(gaps.loc[(group, name, metric)])]
            rows.append(cells)
    own = ["your own images", *map(percent, judged.flagged("id"))]
    if not rows:
        return Table(heads, 1, [own])
    return Table([*heads, *compared], 1, [*rows, [*own, *[""] * len(compared)]])


def _gap(row: pd.Series) -> str:
    return f"{row['difference']:+.1f} ({row['low']:+.1f} to {row['high']:+.1f})"


def class_table(judged: Judged) -> Table:
    """A row for each ID class, the one that is named worst first."""
    classes, rows = judged.detectors[0].classes, []
    for label in sorted(set(judged.tables[0]["label"]) - {-1}):
        parts = [table[(table["group"] == "id") & (table["label"] == label)] for table in judged.tables]
        right = [100 * float((part["predicted"] == label).mean()) for part in parts]
        flagged = [
            100 * float((part[judged.score] > detector.threshold).mean())
            for part, detector in zip(parts, judged.detectors)
        ]
        rows.append((right[0], [classes[label], str(len(parts[0])), *map(percent, [*right, *flagged])]))
    rows.sort(key=lambda row: row[0])
    heads = ["class", "test images", *_heads("right", judged), *_heads("flagged", judged)]
    note = f"The {MOST_CLASSES} of {len(rows)} classes that are named worst." if len(rows) > MOST_CLASSES else ""
    return Table(heads, 1, [cells for _, cells in rows[:MOST_CLASSES]], note)


def settings_table(record: Path) -> Table:
    """A row for each setting of the run that is not empty."""
    values = {
        name: value for name, value in read_json(record).items() if name != "notes" and value not in (None, {}, [])
    }
    texts = {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in values.items()
    }
    return Table(
        ["setting", "value"], 2, [[name, text[:300] + ("…" if len(text) > 300 else "")] for name, text in texts.items()]
    )


def commands(output: Path, command: str) -> Iterator[tuple[str, str]]:
    """What commands are for, and the commands."""
    if command:
        yield "The same run again, or on from where it stopped", command
    detector, generated, made, trained = (
        shlex.quote(str(output / name))
        for name in ("detector", "generated", "generated/settings.json", "detector/training.json")
    )
    yield "Ask the detector about images", f"sona score --detector {detector} inbox/"
    yield "Look at the outliers", f"sona inspect {generated}"
    yield "Make outliers of other images", f"sona generate --config {made} --data photos/ --output outliers/"
    train = f"sona train --config {trained} --data photos/ --outliers outliers/ --output another/"
    yield "Train on them", train
