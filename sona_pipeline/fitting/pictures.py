"""Pictures of a report as data URIs, all of bounded size."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from sona_pipeline.common import figures
from sona_pipeline.data.imaging import plain
from sona_pipeline.data.outlier_set import OutlierPairs
from sona_pipeline.evaluation.score_table import ScoreTable, TestSets, by_set
from sona_pipeline.fitting.both import FOLDERS, Judged

SIDE, SMALL = 112, 64
"""Longest side in pixels of a thumbnail, and that up to which nothing is lost."""
SHOWN, OUTLIERS, PANELS = 8, 16, 4
"""Images of a kind, pairs of an image and its outlier, and held-out classes that are drawn."""


class Picture(NamedTuple):
    """A picture as a data URI, what it shows for who does not see it, and what stands below it."""

    uri: str
    alt: str
    caption: str = ""


class Pair(NamedTuple):
    """An image, its outlier, and what stands below both."""

    source: Picture
    outlier: Picture
    caption: str


class Kind(NamedTuple):
    """Images of one kind: what is common to them, and the images."""

    title: str
    pictures: list[Picture]


def thumbnail(image: Image.Image, alt: str, caption: str = "") -> Picture:
    """An image of at most `SIDE` pixels; small ones as PNG, others as JPEG."""
    image = plain(image).convert("L" if image.mode in ("1", "L", "I;16") else "RGB")
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    form = "png" if max(image.size) <= SMALL else "jpeg"
    content = io.BytesIO()
    image.save(content, format=form, **({} if form == "png" else {"quality": 85}))
    return Picture(_uri(content.getvalue(), form), alt, caption)


def figure(drawn: Figure, alt: str) -> Picture:
    """A figure of matplotlib."""
    return Picture(_uri(figures.figure_png(drawn), "png"), alt)


def _uri(content: bytes, form: str) -> str:
    return f"data:image/{form};base64,{base64.b64encode(content).decode()}"


def curves(named: Mapping[str, Judged]) -> Iterator[list[Picture]]:
    """For each name a histogram of each detector, and ROC curves of all.

    Args:
        named: by name of a held-out class; or under "" what is drawn by near- and far-OOD.
    """
    for name, judged in list(named.items())[:PANELS]:
        found, groups = [], {"near_ood": name or "near-OOD", "far_ood": "far-OOD"}
        for method, table in zip(FOLDERS, judged.tables):
            title = f"{method}, without {name}" if name else method
            sets = {key: some for group in ("id", *groups) for key, some in by_set(table, judged.score, group).items()}
            drawn = figures.scores_figure({title: sets})
            found.append(figure(drawn, f"Histogram of the scores of {title}: {', '.join(sets)}"))
        for group, title in groups.items():
            if judged.has(group):
                lines = {method: _sides(table, judged, group) for method, table in zip(FOLDERS, judged.tables)}
                found.append(figure(figures.roc_figure({title: lines}), f"ROC curves of the detectors: {title}"))
        yield found


def _sides(table: ScoreTable, judged: Judged, group: str) -> tuple[np.ndarray, list[np.ndarray]]:
    return by_set(table, judged.score, "id")["id"], list(by_set(table, judged.score, group).values())


def outliers_by_strength(pairs: OutlierPairs, labels: Mapping[str, str]) -> list[Pair]:
    """Images beside their outliers, from hardly to wholly noised.

    Args:
        pairs: of the set.
        labels: OOD labels by file name.
    """
    order = np.argsort(pairs.strengths, kind="stable")
    chosen = order[np.unique(np.linspace(0, len(order) - 1, min(OUTLIERS, len(order))).astype(int))]
    found = []
    for i in chosen.tolist():
        name, label = pairs.images.label_name(i), labels[pairs.outliers.keys[i]]
        source = thumbnail(pairs.images.image(i), f"an image of {name}")
        outlier = thumbnail(pairs.outliers.image(i), f"its outlier, towards {label}")
        found.append(Pair(source, outlier, f"{name} → {label}, strength {pairs.strengths[i]:.2f}"))
    return found


def surest_and_wrong(judged: Judged, folds: Mapping[str, Judged]) -> list[Kind]:
    """The images that the detector is surest about, and most wrong about.

    Args:
        judged: on the test images.
        folds: detectors of held-out classes, by class, whose images are the unknown ones if there are no others.
    """
    known = _Ranking({"": judged}, ("id",))
    unknown = _Ranking({"": judged}, ("near_ood", "far_ood"))
    unknown = unknown if len(unknown) else _Ranking(folds, ("near_ood",))
    kinds = {
        "Unknown, and flagged most surely": unknown.pictures("score", highest=True, where=unknown.is_flagged),
        "Unknown, and taken for known most surely": unknown.pictures("score", highest=False, where=~unknown.is_flagged),
        "Known, and most familiar": known.pictures("score", highest=False, where=~known.is_flagged & known.is_right),
        "Known, and flagged most surely": known.pictures("score", highest=True, where=known.is_flagged),
        "Known, and named wrongly most surely": known.pictures("confidence", highest=True, where=~known.is_right),
    }
    return [Kind(title, found) for title, some in kinds.items() if (found := list(some))]


class _Ranking:
    """Test images of some groups, to be ranked by what the detector with outliers says of them.

    Args:
        named: detectors by name of the class that they do not know, or "".
        groups: of the images.
    """

    def __init__(self, named: Mapping[str, Judged], groups: Iterable[str]):
        self.named = named
        rows = [self._rows(name, judged, tuple(groups)) for name, judged in named.items()]
        self.rows = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()
        self.places = {name: _places(judged.sets) for name, judged in named.items()}

    @staticmethod
    def _rows(name: str, judged: Judged, groups: tuple[str, ...]) -> pd.DataFrame:
        detector, table = judged.detectors[0], judged.tables[0]
        rows = table[table["group"].isin(groups)]
        taken_for = [detector.classes[k] for k in rows["predicted"]]
        classes = [detector.classes[k] if k >= 0 else "" for k in rows["label"]]
        scores = rows[judged.score] - detector.threshold
        return rows.assign(score=scores, fold=name, taken_for=taken_for, known_as=classes)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def is_flagged(self) -> pd.Series:
        return self.rows["score"] > 0 if len(self) else pd.Series(dtype=bool)

    @property
    def is_right(self) -> pd.Series:
        return self.rows["predicted"] == self.rows["label"]

    def pictures(self, by: str, *, highest: bool, where: pd.Series) -> Iterator[Picture]:
        """The first images in the order of a column."""
        if not len(self):
            return
        for row in self.rows[where].sort_values(by, ascending=not highest, kind="stable").head(SHOWN).itertuples():
            images, index = self.places[row.fold][row.group, row.set, row.key]
            what = row.known_as or row.fold or row.set
            caption = what if what == row.taken_for else f"{what}: taken for {row.taken_for}"
            yield thumbnail(images.image(index), what, f"{caption}, {100 * row.confidence:.0f} %")


def _places(sets: TestSets) -> dict:
    """Where the image of a group, set and key is."""
    return {(group, name, key): (images, i) for group, name, images in sets for i, key in enumerate(images.keys)}
