"""Whether outliers help with things never seen, asked without OOD images: classes are held out in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from sona_pipeline.fitting.sources import FitSources
from sona_pipeline.generation.ood_labels import find_collisions

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
    """What came of the held-out classes: both detectors by class, and `differences` as of `compare_folds`."""

    folds: Mapping[str, Judged]
    differences: pd.DataFrame


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
    """Train both detectors without each of the classes, and test them on it.

    Args:
        names: of the classes.
        sources: images, and how detectors are trained.
        generated: the outlier set of the training images.
        output: for a folder a class, with both detectors and their results, and for `differences.csv`.
    """
    folders, folds = unique_names(names), {}
    for name in names:
        fold, folder = fold_without(name, sources, generated), output / folders[name]
        trained = train_both(
            fold.pairs, fold.validation, folder, sources.training, sources.running, note=f" without {name}"
        )
        folds[name] = judge_both(trained, fold.sets, folder / "results")
    differences = compare_folds({name: one.tables for name, one in folds.items()}, sources.training.score)
    write_text(output / "differences.csv", differences.to_csv(index=False, lineterminator="\n"))
    return Checks(folds, differences)
