"""Two detectors of the same images, with their outliers and without: trained, and judged by the same test images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from sona_pipeline.data.image_set import ImageSet
from sona_pipeline.data.outlier_set import OutlierPairs
from sona_pipeline.detection.detector import Detector
from sona_pipeline.evaluation.evaluate import evaluate_detectors
from sona_pipeline.evaluation.score_table import ScoreTable, TestSets, read_scores
from sona_pipeline.training.methods import METHODS
from sona_pipeline.training.settings import Running, TrainingSettings
from sona_pipeline.training.train import train_detector

SONA, BASELINE = "SONA", "cross-entropy"
"""What the detectors with and without outliers are called."""
FOLDERS = {SONA: "detector", BASELINE: "baseline"}
"""Where they lie."""


@dataclass(frozen=True)
class Judged:
    """What both detectors say of test images; theirs come in the order of `FOLDERS`.

    Attributes:
        sets: the test images.
        detectors: the two.
        tables: their scores.
        differences: of the first from the second, as of `comparison.compare`, if they were asked for.
    """

    sets: TestSets
    detectors: tuple[Detector, ...]
    tables: tuple[ScoreTable, ...]
    differences: pd.DataFrame | None = None

    @property
    def score(self) -> str:
        """Name of the score that their thresholds are for."""
        return self.detectors[0].score

    def names(self, group: str) -> list[str]:
        """The sets in a group."""
        return list(dict.fromkeys(name for kind, name, _ in self.sets if kind == group))

    def has(self, group: str) -> bool:
        """Whether there is a set in a group."""
        return bool(self.names(group))

    def flagged(self, group: str, name: str | None = None) -> list[float]:
        """Share that each detector flags of the images of a group, or of one set in it, in percent."""
        shares = []
        for detector, table in zip(self.detectors, self.tables):
            rows = table[(table["group"] == group) & ((table["set"] == name) | (name is None))]
            shares.append(100 * float((rows[self.score] > detector.threshold).mean()))
        return shares


def check_method(settings: TrainingSettings) -> None:
    """Raise ValueError for a method that is no training with outliers to compare with one without."""
    method = METHODS[settings.method]
    if not method.needs_outliers or method.heads > 1:
        able = [name for name, one in METHODS.items() if one.needs_outliers and one.heads == 1]
        raise ValueError(
            f"`method` is {settings.method!r}, which trains no network that can be compared with and without outliers:"
            f" take one of {able}"
        )


def without_outliers(settings: TrainingSettings) -> TrainingSettings:
    """The settings of the plain classifier: the same but for what outliers need."""
    return replace(settings, method="oe", outlier_weight=None, mi_weight=None, m_in=None, m_out=None)


def train_both(
    pairs: OutlierPairs,
    validation: ImageSet,
    output: Path,
    settings: TrainingSettings,
    running: Running,
    *,
    classifier: Detector | None = None,
    note: str = "",
) -> tuple[Detector, ...]:
    """Train, calibrate and keep both detectors, which it gives in the order of `FOLDERS`.

    Args:
        pairs: images and their outliers.
        validation: labelled images that threshold and best epoch are found by.
        output: folder for `FOLDERS`.
        settings, running: how they are trained.
        classifier: that both start from, and keep.
        note: what their progress bars say besides.
    """
    return tuple(
        train_detector(
            pairs.images,
            how,
            classifier=classifier,
            validation=validation,
            outliers=outliers,
            output=output / FOLDERS[name],
            running=running,
            title=FOLDERS[name] + note,
        )
        for name, outliers, how in ((SONA, pairs, settings), (BASELINE, None, without_outliers(settings)))
    )


def judge_both(detectors: tuple[Detector, ...], sets: TestSets, output: Path, *, is_compared: bool = False) -> Judged:
    """What both detectors say of test images; tables land in `output`, see `evaluate_detectors`."""
    evaluate_detectors(list(zip(FOLDERS, detectors)), sets, output, baseline=BASELINE if is_compared else None)
    tables = tuple(read_scores(output / "scores" / f"{name}-0.parquet") for name in FOLDERS)
    differences = pd.read_csv(output / "differences.csv", keep_default_na=False) if is_compared else None
    return Judged(sets, detectors, tables, differences)
