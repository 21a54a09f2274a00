"""The score of detectors: chosen by classes that are held out, and given to detectors that are trained already."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from sona_pipeline.common.files import read_json, write_text
from sona_pipeline.data.image_set import ImageSet
from sona_pipeline.detection.calibration import calibrated_on
from sona_pipeline.detection.detector import UNCALIBRATED, WITHOUT_NEIGHBOURS, Detector, load_detector, save_detector
from sona_pipeline.detection.neighbours import keep_neighbours
from sona_pipeline.detection.scores import FEATURE_SCORES
from sona_pipeline.evaluation.comparison import compare_folds
from sona_pipeline.evaluation.score_table import ScoreTable
from sona_pipeline.training.settings import TrainingSettings

ENERGY, WITH_KNN = TRIED = "energy", "energy+knn"
"""The scores that are chosen from; a detector that has the last can also be judged by the first."""


@dataclass(frozen=True)
class Choice:
    """Which score classes that are held out speak for.

    Attributes:
        score: one of `TRIED`; "energy" unless the other one leads by more than chance.
        auroc: of each, near-OOD, the mean over the classes, in percent.
        difference, low, high: how far "energy+knn" leads, and the 95 % interval of that, as of `compare_folds`.
    """

    score: str
    auroc: dict[str, float]
    difference: float
    low: float
    high: float


def choose_score(tables: Mapping[str, ScoreTable]) -> Choice:
    """The score by which a detector tells held-out classes best.

    Args:
        tables: scores `TRIED` of the same detector, by the class that it was trained without.
    """
    pairs = {
        name: (table.assign(asked=table[WITH_KNN]), table.assign(asked=table[ENERGY])) for name, table in tables.items()
    }
    found = compare_folds(pairs, "asked").set_index(["held_out", "metric"]).loc[("", "auroc")]
    auroc = {ENERGY: float(found["theirs"]), WITH_KNN: float(found["ours"])}
    chosen = WITH_KNN if found["verdict"] == "better" else ENERGY
    return Choice(chosen, auroc, *(float(found[name]) for name in ("difference", "low", "high")))


def rescored(
    detector: Detector, score: str, images: ImageSet, validation: ImageSet, settings: TrainingSettings
) -> Detector:
    """A detector with a score and its threshold, as a training by these images and settings would have left it."""
    if score in FEATURE_SCORES:
        new = keep_neighbours(detector, images, validation, seed=settings.seed)
    else:
        new = detector.with_settings(score=score, **WITHOUT_NEIGHBOURS, **UNCALIBRATED)
    return new if settings.id_rate is None else calibrated_on(new, validation, settings.id_rate)


def give_score(
    folder: Path,
    images: ImageSet,
    validation: ImageSet,
    settings: TrainingSettings,
    device: str | torch.device | None = None,
) -> None:
    """See to it that what was trained in a folder, or was begun, has the score of the settings.

    Only what comes after the last epoch depends on the score, so nothing is trained anew.
    """
    record, config = folder / "training.json", folder / "config.json"
    if not record.exists():
        return
    if config.exists() and read_json(config)["score"] != settings.score:
        found = rescored(load_detector(folder, device), settings.score, images, validation, settings)
        save_detector(found, folder)
    if (known := read_json(record))["score"] != settings.score:
        write_text(record, json.dumps(known | {"score": settings.score}, indent=2, ensure_ascii=False) + "\n")
