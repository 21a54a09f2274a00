"""The detector that a training starts from: untrained, with the weights of its network, or trained before."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from safetensors.torch import save

from sona_pipeline.common.files import digest
from sona_pipeline.data.class_names import same_names
from sona_pipeline.detection import networks
from sona_pipeline.detection.detector import Detector, load_detector
from sona_pipeline.training.methods import METHODS
from sona_pipeline.training.settings import TrainingSettings


def new_detector(classes: Sequence[str], settings: TrainingSettings) -> Detector:
    """An untrained detector, one whose body has the weights that come with its network, or a trained one.

    Raises:
        FileNotFoundError, PermissionError: the detector to start from, or the processor of a network, cannot be had.
        ValueError: that detector is of other classes, another network or another size; or see `networks.build`.
    """
    if settings.initial_checkpoint:
        return _trained_detector(classes, settings, settings.initial_checkpoint)
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
        settings.score,
        network_config=None if network is None else network.config,
        channel_order=seen.channel_order,
        feature_scale=settings.feature_scale,
        heads=METHODS[settings.method].heads,
    )
    if network is not None:
        detector.network = network
    return detector


def _trained_detector(classes: Sequence[str], settings: TrainingSettings, place: str) -> Detector:
    """The detector to start from, with the settings of the new one, and no threshold."""
    start = load_detector(place, "cpu")
    found = {"network": start.settings["network"], "image_size": start.image_size}
    found["feature_scale"] = start.settings["feature_scale"]
    for name, value in found.items():
        if value != (wanted := getattr(settings, name)):
            raise ValueError(f"`{name}` is {wanted!r}, but the detector in {place} has {value!r}: give the same")
    if not same_names(start.classes, classes):
        raise ValueError(
            f"the detector in {place} is of the classes {_first(start.classes)}, and the training images of"
            f" {_first(classes)}: start from one of the same classes in the same order"
        )
    if (heads := METHODS[settings.method].heads) != start.settings["heads"]:
        raise ValueError(
            f"the method {settings.method!r} trains {heads} heads, but the detector in {place} has"
            f" {start.settings['heads']}: start from one that was trained by a method with as many"
        )
    new = {"classes": list(classes), "crop_pct": settings.crop_pct, "score": settings.score}
    return start.with_settings(**new, temperature=1.0, threshold=None, id_quantiles=None).train()


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
