"""Detectors of the same images, with outliers and without, and a classifier that both start from: all are judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from sona_pipeline.data.image_set import ImageSet
from sona_pipeline.data.outlier_set import OutlierPairs
from sona_pipeline.detection.detector import Detector, load_detector, save_detector
from sona_pipeline.evaluation.evaluate import evaluate_detectors
from sona_pipeline.evaluation.score_table import ScoreTable, TestSets, read_scores
from sona_pipeline.fitting.scores import rescored
from sona_pipeline.training.methods import METHODS
from sona_pipeline.training.settings import Running, TrainingSettings
from sona_pipeline.training.start import classes_of, new_detector
from sona_pipeline.training.train import train_detector

SONA, BASELINE, ORIGINAL = "SONA", "cross-entropy", "original"
"""What the detectors with and without outliers are called, and the classifier as it was before, if one is kept."""
FOLDERS = {SONA: "detector", BASELINE: "baseline", ORIGINAL: "original"}
"""Where they lie."""
TRAINED = (SONA, BASELINE)
"""Those that a run trains."""


@dataclass(frozen=True)
class Judged:
    """What detectors say of test images; theirs come in the order of `FOLDERS`, whose last is not always there.

    Attributes:
        sets: the test images.
        detectors: two or three.
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
    """Train, calibrate and keep the detectors, which it gives in the order of `FOLDERS`.

    Args:
        pairs: images and their outliers.
        validation: labelled images that threshold and best epoch are found by.
        output: folder for `FOLDERS`.
        settings, running: how they are trained.
        classifier: that both start from, and keep; it is calibrated, too.
        note: what their progress bars say besides.
    """
    trained = [
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
    ]
    if classifier is not None:
        start = classifier.with_settings().to(trained[0].device)
        trained.append(_as_it_was(start, pairs.images, validation, output / FOLDERS[ORIGINAL], settings))
    return tuple(trained)


def _as_it_was(
    classifier: Detector, images: ImageSet, validation: ImageSet, folder: Path, settings: TrainingSettings
) -> Detector:
    """The classifier that a training starts from, with the score of the others and a threshold, kept in a folder."""
    if not (folder / "config.json").exists():
        start = new_detector(classes_of(classifier, images.classes), settings, classifier).eval()
        save_detector(rescored(start, settings.score, images, validation, settings), folder)
    return load_detector(folder, classifier.device, classifier.network.own_module())


def judge_both(
    detectors: tuple[Detector, ...],
    sets: TestSets,
    output: Path,
    scores: Sequence[str] = (),
    *,
    is_compared: bool = False,
) -> Judged:
    """What the detectors say of test images, by their own score or by `scores`.

    Tables land in `output`, see `evaluate_detectors`; those of a detector that has another score since are made anew.
    """
    named = list(zip(FOLDERS, detectors))
    paths = [output / "scores" / f"{name}-0.parquet" for name, _ in named]
    for path, detector in zip(paths, detectors):
        if path.exists() and detector.score not in read_scores(path):
            path.unlink()
    evaluate_detectors(named, sets, output, scores, baseline=BASELINE if is_compared else None)
    differences = None
    if is_compared:
        differences = pd.read_csv(output / "differences.csv", keep_default_na=False)
        differences = differences[differences["method"] == SONA]
    return Judged(sets, detectors, tuple(map(read_scores, paths)), differences)
