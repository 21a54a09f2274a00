"""Whether outliers help with things never seen, asked without OOD images: classes are held out in turn."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from sona_pipeline.common.files import write_text
from sona_pipeline.common.names import unique_names
from sona_pipeline.data.image_set import ImageSet
from sona_pipeline.data.outlier_set import OutlierPairs, open_outlier_set, read_rows
from sona_pipeline.evaluation.comparison import compare_folds
from sona_pipeline.evaluation.score_table import TestSets
from sona_pipeline.fitting.both import Judged, judge_both, train_both
from sona_pipeline.fitting.scores import TRIED, Choice, choose_score, rescored
from sona_pipeline.fitting.sources import FitSources
from sona_pipeline.generation.ood_labels import find_collisions
from sona_pipeline.training.settings import TrainingSettings

HELD_OUT = "held out"
"""What the test set of a held-out class is called."""


@dataclass(frozen=True)
class Fold:
    """What is left when a class is held out.

    Attributes:
        name: of the class.
        pairs: training images of the other classes, with their outliers.
        validation: labelled images of the other classes.
        sets: test images of the other classes, and all images of this one as near-OOD.
    """

    name: str
    pairs: OutlierPairs
    validation: ImageSet
    sets: TestSets


@dataclass(frozen=True)
class Checks:
    """What came of the held-out classes.

    Attributes:
        folds: both detectors by class.
        differences: of them, as of `compare_folds`.
        choice: of the score of all detectors, if it was left to these classes.
    """

    folds: Mapping[str, Judged]
    differences: pd.DataFrame
    choice: Choice | None = None


def held_out_classes(classes: Sequence[str], count: int, seed: int) -> list[str]:
    """The classes that are held out in turn, drawn at random; a smaller draw is part of a larger one."""
    return [classes[k] for k in np.random.default_rng(seed).permutation(len(classes))[:count]]


def fold_without(name: str, sources: FitSources, generated: Path) -> Fold:
    """The sets without a class, and without outliers that are of its images or may mean it.

    Args:
        name: of the class.
        sources: images of all classes.
        generated: the outlier set of the training images.
    """
    others = [one for one in sources.train.classes if one != name]
    train, validation, known = (images.with_classes(others) for images in sources.parts.values())
    meant = _meanings_of(name, sources, generated)
    unknown = _together({part: images.of_classes([name]) for part, images in sources.parts.items()})
    known = replace(known, keys=tuple(f"test/{key}" for key in known.keys))
    pairs = open_outlier_set(generated, train.take([i for i, key in enumerate(train.keys) if key not in meant]))
    return Fold(name, pairs, validation, TestSets(known, {HELD_OUT: unknown}))


def _meanings_of(name: str, sources: FitSources, generated: Path) -> set[str]:
    """Keys of the images whose outliers may mean a class: by a blend of classes, or by a label that was kept."""
    labels = {row["source_key"]: row["ood_label"].split(" + ") for row in read_rows(generated)}
    meanings = sorted({meaning for some in labels.values() for meaning in some})
    collisions = find_collisions([(meaning,) for meaning in meanings], {name: sources.names[name]})
    found = {collision.label for collision in collisions}
    return {key for key, some in labels.items() if found & set(some)}


def _together(parts: Mapping[str, ImageSet]) -> ImageSet:
    """Images of several sets as one, without classes; their keys start with the names of their sets."""
    places = [(images, i) for images in parts.values() for i in range(len(images))]
    keys = tuple(f"{part}/{key}" for part, images in parts.items() for key in images.keys)
    return ImageSet(keys, (), (), lambda k: places[k][0].image(places[k][1]))


def check_classes(names: Sequence[str], sources: FitSources, generated: Path, output: Path) -> Checks:
    """Train both detectors without each of the classes, and test them on it; and choose the score, if it is left open.

    Args:
        names: of the classes.
        sources: images, and how detectors are trained.
        generated: the outlier set of the training images.
        output: for a folder a class, with both detectors and their results, for `differences.csv` and `score.json`.
    """
    scores = TRIED if sources.chooses_score else (sources.training.score,)
    settings, folders = replace(sources.training, score=scores[-1]), unique_names(names)
    folds, judged = [fold_without(name, sources, generated) for name in names], {}
    for fold in folds:
        folder, note = output / folders[fold.name], f" without {fold.name}"
        trained = train_both(fold.pairs, fold.validation, folder, settings, sources.running, note=note)
        judged[fold.name] = judge_both(trained, fold.sets, folder / "results", scores)
    choice = choose_score({name: one.tables[0] for name, one in judged.items()}) if sources.chooses_score else None
    if choice:
        settings = replace(settings, score=choice.score)
        judged = {fold.name: _judged_by(judged[fold.name], fold, settings) for fold in folds}
        write_text(output / "score.json", json.dumps(asdict(choice), indent=2) + "\n")
    differences = compare_folds({name: one.tables for name, one in judged.items()}, settings.score)
    write_text(output / "differences.csv", differences.to_csv(index=False, lineterminator="\n"))
    return Checks(judged, differences, choice)


def _judged_by(judged: Judged, fold: Fold, settings: TrainingSettings) -> Judged:
    """What the detectors say by the score of the settings; those on the disk stay as they are."""
    if judged.score == settings.score:
        return judged
    found = [rescored(one, settings.score, fold.pairs.images, fold.validation, settings) for one in judged.detectors]
    return replace(judged, detectors=tuple(found))
