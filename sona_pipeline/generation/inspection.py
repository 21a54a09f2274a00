"""Job: what is in an outlier set, counted and drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image
from rich.markup import escape
from rich.table import Column, Table

from sona_pipeline.common import figures
from sona_pipeline.data.class_names import finder
from sona_pipeline.data.codecs import KeptForm
from sona_pipeline.data.image_set import ImageSet
from sona_pipeline.data.imaging import fit, plain
from sona_pipeline.data.outlier_set import (
    FINGERPRINT,
    open_outliers,
    read_rejects,
    read_rows,
    read_settings,
    recorded_form,
)
from sona_pipeline.data.rejects import may_pass, reasons_of
from sona_pipeline.data.remote import address_of
from sona_pipeline.generation.checks import BY_CLASSIFIER, CHECKS
from sona_pipeline.generation.shortcuts import FEWEST, MOST, Shortcut, told_apart

QUANTILES = (1, 10, 50, 90, 99)
"""Shares in percent that results of the checks are told by."""
EARLIEST = 0.1
"""Share of the schedule that outliers have hardly changed by, where those of the first stop step are too few."""
MEANING = (
    "Near 50, codec, scaling and model leave no trace to tell them by; near 100, a detector may learn such a trace"
    " instead of meanings, unless it has round trips among its ID images"
)


@dataclass(frozen=True)
class Inspection:
    """What is in an outlier set.

    Attributes:
        settings: that it was made with.
        classes, labels, stop_steps: how many outliers each has.
        checks: results of the quality checks by name.
        duplicates: how many outliers look nearly like one before them.
        rejects: how many images have no outlier, by reason with the numbers left out.
        rows: of the metadata table, by file name.
        shortcuts: how well a probe tells kinds of images apart; empty until that is measured.
    """

    settings: dict
    classes: Counter
    labels: Counter
    stop_steps: Counter
    checks: dict[str, np.ndarray]
    duplicates: int
    rejects: Counter
    rows: list[dict]
    shortcuts: tuple[Shortcut, ...] = ()


def inspect_outliers(folder: str | Path) -> Inspection:
    """Count what is in an outlier set, finished or not.

    Raises:
        FileNotFoundError: `folder` is not an outlier set.
        ValueError: it has no outliers yet.
    """
    rows = sorted(read_rows(folder), key=lambda row: row["file_name"])
    if not rows:
        raise ValueError(f"{folder} has no outliers yet: let `sona generate` make some")
    names = [name for name in (*CHECKS, *BY_CLASSIFIER) if all(name in row for row in rows)]
    return Inspection(
        settings=read_settings(folder),
        classes=Counter(row["source_class"] for row in rows),
        labels=Counter(row["ood_label"] for row in rows),
        stop_steps=Counter(row["stop_step"] for row in rows),
        checks={name: np.array([row[name] for row in rows]) for name in names},
        duplicates=len(rows) - len({row[FINGERPRINT] for row in rows}),
        rejects=reasons_of(read_rejects(folder)),
        rows=rows,
    )


def find_shortcuts(folder: str | Path, found: Inspection, images: ImageSet | None = None) -> tuple[Shortcut, ...]:
    """How well a probe tells round trips from their ID images, and outliers that have hardly changed from round trips.

    ID images undergo first what they undergo when a detector is trained. Without round trips there is nothing to tell.

    Args:
        folder: of the set.
        found: what is in it.
        images: the ID images; without them, only the second is told.
    """
    if not found.settings["reconstructions"]:
        return ()
    shortcuts = []
    if images is not None:
        find = finder({key: index for index, key in enumerate(images.keys)})
        places = {row["file_name"]: place for row in found.rows if (place := find(row["source_key"])) is not None}
        shortcuts.append(_of_round_trips(folder, found.settings, _evenly(list(places)), places, images))
    steps = found.settings["num_inference_steps"]
    last = 1 if found.stop_steps[1] >= FEWEST else max(1, round(EARLIEST * steps))
    names = _evenly([row["file_name"] for row in found.rows if row["stop_step"] <= last])
    kind = f"outliers of stop step{f's 1 to {last}' if last > 1 else ' 1'}"
    return (*shortcuts, _of_outliers(folder, names, kind))


def _of_round_trips(
    folder: str | Path, settings: dict, names: Sequence[str], places: Mapping[str, int], images: ImageSet
) -> Shortcut:
    """Of the round trips with these names from their ID images, which are at `places`."""
    trips = _opened(folder, names)[1]

    def pair(k: int) -> tuple[Image.Image, Image.Image]:
        trip = trips.image(k)
        form = recorded_form(settings) or KeptForm(trip.width, trip.width)
        source = fit(images.image(places[names[k]]), form.model_size, "RGB", settings["resize_mode"])
        return trip, form.undergone(source)

    return told_apart("round trips", "their ID images", len(names), pair)


def _of_outliers(folder: str | Path, names: Sequence[str], kind: str) -> Shortcut:
    outliers, trips = _opened(folder, names)
    return told_apart(
        kind, "the round trips of their sources", len(names), lambda k: (outliers.image(k), trips.image(k))
    )


def _opened(folder: str | Path, names: Sequence[str]) -> tuple[ImageSet, ImageSet]:
    """The outliers and round trips with these names."""
    outliers, trips = open_outliers(folder, names)
    assert trips is not None
    return outliers, trips


def _evenly(names: Sequence[str], most: int = MOST) -> list[str]:
    """At most so many of the names, from all parts of them."""
    return [names[k] for k in np.unique(np.linspace(0, len(names) - 1, min(most, len(names))).astype(int))]


def draw_inspection(folder: str | Path, path: Path, images: ImageSet | None = None, pairs: int = 24) -> Inspection:
    """Draw a sheet: outliers by class, stop step and label, histograms of the checks, shortcuts, and sample pairs.

    Args:
        folder: of the set.
        path: of the PNG file.
        images: the ID images, shown above their outliers; without them, the VAE round trips are, if the set has them.
        pairs: how many, from all stop steps.

    Returns:
        What is in the set, with the shortcuts.
    """
    found = inspect_outliers(folder)
    by_step = sorted(found.rows, key=lambda row: (row["stop_step"], row["file_name"]))
    shown = [by_step[k] for k in np.unique(np.linspace(0, len(by_step) - 1, min(pairs, len(by_step))).astype(int))]
    outliers, sources = open_outliers(folder, [row["file_name"] for row in shown])
    if images is not None:
        find = finder({key: index for index, key in enumerate(images.keys)})
        places = [find(row["source_key"]) for row in shown]
        if missing := [row["source_key"] for row, place in zip(shown, places) if place is None]:
            raise ValueError(f"the images have no {missing[0]!r}, which an outlier comes from: give the ones it has")
        sources = images.take([place for place in places if place is not None])
    samples = [
        (
            plain(sources.image(k)) if sources else None,
            outliers.image(k),
            f"{row['id_label']}\n→ {row['ood_label'][:24]}, {row['stop_step']}",
        )
        for k, row in enumerate(shown)
    ]
    found = replace(found, shortcuts=find_shortcuts(folder, found, images))
    sheet = figures.inspection_figure(
        {"source class": found.classes, "OOD label": found.labels},
        found.stop_steps,
        found.settings["num_inference_steps"],
        found.checks,
        samples,
        [in_words(one) for one in found.shortcuts],
    )
    figures.save_figure(sheet, path)
    return found


def in_words(one: Shortcut) -> str:
    """How well the probe did, as a sentence."""
    if one.auroc is None:
        return f"{one.images.capitalize()} and {one.others}: {one.pairs} are too few for a probe, which needs {FEWEST}"
    return (
        f"A probe tells {one.images} from {one.others} with an AUROC of {one.auroc:.1f} ({one.pairs} of each; chance is"
        f" 50 ± {one.chance:.0f})"
    )


def summary(found: Inspection) -> list[str | Table]:
    """What is in an outlier set, for the console."""
    table = Table(*(Column(name, overflow="fold") for name in ("check", *(f"{share} %" for share in QUANTILES))))
    for name, values in found.checks.items():
        table.add_row(name, *(f"{value:.3g}" for value in np.percentile(values, QUANTILES)))
    return [
        f"{len(found.rows)} outliers, {len(found.classes)} classes, {len(found.labels)} OOD labels",
        table,
        f"{found.duplicates} look nearly like another one",
        *map(in_words, found.shortcuts),
        *([MEANING] if found.shortcuts else []),
        *(f"{count} images without an outlier: {escape(reason)}" for reason, count in found.rejects.most_common()),
    ]


def outcome(folder: Path, images: ImageSet) -> list[str]:
    """Sentences about a run into `folder`: how many images have an outlier, and what about the others, if any."""
    rejects = {row["source_key"]: row for row in read_rejects(folder)}
    without = [rejects[key] for key in images.keys if key in rejects]
    made = {row["source_key"] for row in read_rows(folder)}
    part = read_settings(folder).get("part")
    what = f"Part {part}, outliers" if part else "Outliers"
    place = address_of(folder) or (folder if part else folder / "outliers")
    said = [f"{what} of {sum(key in made for key in images.keys)} images: {place}"]
    if without:
        said.append(f"{len(without)} images have no outlier: see {folder / 'rejects.jsonl'}")
    if again := sum(map(may_pass, without)):
        said.append(f"{again} of them are tried again when the same command is started again")
    return said
