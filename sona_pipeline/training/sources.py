"""The images of a training, opened from where its settings say they are."""

from __future__ import annotations

from dataclasses import replace

from sona_pipeline.common.places import real_place
from sona_pipeline.data.image_set import ImageSet, are_same, check_there, hold_out
from sona_pipeline.data.images import open_images, open_source
from sona_pipeline.data.lists import is_image_list
from sona_pipeline.data.outlier_set import open_outlier_sets
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
    if source.real_outliers and real_place(source.real_outliers) == real_place(source.data):
        raise ValueError(
            f"--real-outliers {source.real_outliers} are the training images: give images of other things, or leave it"
            " out"
        )
    images, validation = open_source(source), None
    check_there(images)
    if source.validation:
        validation = _open_validation(source, source.validation, images)
    elif source.validation_share > 0:
        images, validation = hold_out(images, source.validation_share, seed)
    if source.real_outliers:
        exposed = open_images(
            source.real_outliers,
            split=source.split,
            image_column=source.image_column,
            image_root=source.image_root,
            labelled=False,
        )
        return TrainingSets(images, validation, exposed), 0
    if not source.outliers:
        return TrainingSets(images, validation), 0
    pairs = open_outlier_sets(source.outliers, images)
    return TrainingSets(pairs.images, validation, pairs), len(images) - len(pairs.images)


def _open_validation(source: TrainingImages, place: str, images: ImageSet) -> ImageSet:
    places = replace(source, data=place, split=source.validation_split or source.split)
    class_list = source.data if is_image_list(source.data) else None
    found = open_source(places, class_list)
    if real_place(source.data) == real_place(place) and are_same(found, images):
        raise ValueError(
            f"--validation {place} are the training images, on which a threshold means nothing: give others, or another"
            " --validation-split, or leave it out to have a share of DATA held out"
        )
    return found
