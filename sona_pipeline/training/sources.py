"""The images of a training, opened from where its settings say they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sona_pipeline.data.image_set import ImageSet, hold_out
from sona_pipeline.data.images import open_images, open_source
from sona_pipeline.data.lists import is_image_list
from sona_pipeline.data.outlier_set import open_outlier_set
from sona_pipeline.training.items import TrainingSets
from sona_pipeline.training.settings import TrainingImages


def open_training_sets(source: TrainingImages, seed: int) -> tuple[TrainingSets, int]:
    """What a detector is trained on, and how many of the ID images are left out since they have no outlier.

    Args:
        source: see `TrainingImages`.
        seed: of what is held out.

    Raises:
        FileNotFoundError: something is not there.
        ValueError: sets exclude each other, or the validation images are the training images.
    """
    if source.outliers and source.real_outliers:
        raise ValueError("--outliers and --real-outliers exclude each other: give one of them")
    images, validation = open_source(source), None
    if source.validation:
        validation = _open_validation(source, source.validation, images)
    elif source.validation_share > 0:
        images, validation = hold_out(images, source.validation_share, seed)
    if source.real_outliers:
        exposed = open_images(source.real_outliers, split=source.split, image_root=source.image_root)
        return TrainingSets(images, validation, exposed), 0
    if not source.outliers:
        return TrainingSets(images, validation), 0
    pairs = open_outlier_set(source.outliers, images)
    return TrainingSets(pairs.images, validation, pairs), len(images) - len(pairs.images)


def _open_validation(source: TrainingImages, place: str, images: ImageSet) -> ImageSet:
    places = replace(source, data=place, split=source.validation_split or source.split)
    class_list = source.data if is_image_list(source.data) else None
    found = open_source(places, class_list)
    if _is_same_place(source.data, place) and (found.keys, found.labels) == (images.keys, images.labels):
        raise ValueError(
            f"--validation {place} are the training images, on which a threshold means nothing: give others, or another"
            " --validation-split, or leave it out to have a share of DATA held out"
        )
    return found


def _is_same_place(one: str, other: str) -> bool:
    """Whether two places of images are one: the same path on disk, or the same Hub id."""
    return Path(one).resolve() == Path(other).resolve() if Path(one).exists() else one == other
