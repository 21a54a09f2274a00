"""The detector that a training starts from: untrained, with the weights of its network, or trained before."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from safetensors.torch import save

from sona_pipeline.common.files import digest
from sona_pipeline.data.class_names import matched
from sona_pipeline.detection import networks
from sona_pipeline.detection.detector import UNCALIBRATED, WITHOUT_NEIGHBOURS, Detector
from sona_pipeline.detection.scores import SCORES
from sona_pipeline.training.methods import METHODS
from sona_pipeline.training.settings import TrainingSettings


def new_detector(classes: Sequence[str], settings: TrainingSettings, classifier: Detector | None = None) -> Detector:
    """An untrained detector, one whose body has the weights that come with its network, or a copy of a trained one.

    Raises:
        FileNotFoundError: the processor of a network cannot be had.
        ValueError: see `networks.build`.
    """
    if classifier is not None:
        return _kept(classifier, classes, settings)
    seen = networks.preprocessing(settings.network if settings.pretrained else "")
    network = None
    if settings.pretrained:
        network = networks.build(
            settings.network,
            len(classes),
            settings.image_size,
            pretrained=True,
            feature_scale=settings.feature_scale,
            heads=METHODS[settings.method].heads,
        )
    detector = Detector(
        list(classes),
        settings.network,
        settings.image_size,
        settings.crop_pct,
        seen.mean,
        seen.std,
        _first_score(settings),
        network_config=None if network is None else network.config,
        channel_order=seen.channel_order,
        feature_scale=settings.feature_scale,
        heads=METHODS[settings.method].heads,
    )
    if network is not None:
        detector.network = network
    return detector


def _first_score(settings: TrainingSettings) -> str:
    """The score of a detector in training: one that needs features comes after the last epoch."""
    return settings.score if settings.score in SCORES else "energy"


def kept_settings(settings: TrainingSettings, classifier: Detector) -> TrainingSettings:
    """The settings of a training that keeps a classifier, whose network, image size and preprocessing they have.

    Raises:
        ValueError: a network is asked for besides, features are to be scaled otherwise, or the method trains another
            number of heads.
    """
    own = classifier.settings
    if settings.pretrained:
        raise ValueError("`pretrained` and a classifier exclude each other: start from one of them")
    if settings.feature_scale not in (None, own["feature_scale"]):
        raise ValueError(
            f"`feature_scale` is {settings.feature_scale}, but the classifier has {own['feature_scale']}: leave it out"
        )
    if (heads := METHODS[settings.method].heads) != own["heads"]:
        raise ValueError(
            f"the method {settings.method!r} trains {heads} heads, but the classifier has {own['heads']}: start from"
            " one that was trained by a method with as many"
        )
    return replace(
        settings,
        network=own["network"],
        image_size=classifier.image_size,
        crop_pct=classifier.crop_pct,
        feature_scale=own["feature_scale"],
    )


def check_without_classifier(settings: TrainingSettings) -> None:
    """Raise ValueError for a setting that brings weights back to those of a classifier, where none is kept."""
    if settings.max_accuracy_drop is not None:
        raise ValueError(
            f"`max_accuracy_drop` is {settings.max_accuracy_drop}, but no classifier is kept, and weights would be"
            " brought back towards untrained ones: give a classifier, or set it to None (another recipe than"
            " 'finetune')"
        )


def classes_of(classifier: Detector, classes: Sequence[str]) -> list[str]:
    """The training images' classes in the order of a classifier's logits.

    Raises:
        ValueError: they are others, or more, or fewer.
    """
    found = matched(classes, classifier.classes)
    if found is None:
        raise ValueError(
            f"the classifier is of the classes {_first(classifier.classes)}, and the training images of"
            f" {_first(classes)}, which are not the same by their names: rename the folders, or give names that fit as"
            " --classifier-labels"
        )
    return found


def _kept(classifier: Detector, classes: Sequence[str], settings: TrainingSettings) -> Detector:
    """The classifier to start from, with the settings of the new one, and no threshold."""
    new = {"classes": list(classes), "score": _first_score(settings), "temperature": 1.0}
    return classifier.with_settings(**new, **WITHOUT_NEIGHBOURS, **UNCALIBRATED).train()


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f", ... ({len(names)})" if len(names) > 5 else "")


def check_single_images(detector: Detector) -> None:
    """Raise ValueError if the network cannot be trained on one image at a time, as batch norm of 1 x 1 maps cannot."""
    size = detector.image_size
    try:
        copy.deepcopy(detector).train()(torch.zeros(1, 3, size, size))
    except ValueError as error:
        raise ValueError(
            f"parts of one image cannot be normalized by {detector.settings['network']} at {size} pixels: raise"
            f" `batch_size`, or lower `accumulation` or the number of processes ({error})"
        ) from error


def digest_of_weights(detector: Detector) -> str:
    """The first 16 digits of the SHA-256 of the weights."""
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in detector.state_dict().items()}
    return digest(save(weights))[:16]
