"""How the pretrained networks of timm and transformers have their images: normalization and order of the channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from sona_pipeline.common.messages import brief

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CHANNEL_ORDERS = ("RGB", "BGR")
Channels = tuple[float, float, float]
_COLOURS = ((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255))
_SIDE = 64


@dataclass(frozen=True)
class Preprocessing:
    """What is done to the pixels of an image in [0, 1] before a network sees them.

    Attributes:
        mean, std: of red, green and blue, by which they are normalized.
        channel_order: "RGB", or "BGR" for a network that has blue first.
    """

    mean: Channels = IMAGENET_MEAN
    std: Channels = IMAGENET_STD
    channel_order: str = "RGB"


def of_timm(name: str) -> Preprocessing:
    """That of a timm network's pretrained weights.

    Raises:
        ValueError: it takes images of another number of channels than three.
    """
    import timm
    from timm.data import resolve_data_config

    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if config is None:
        return Preprocessing()
    found = resolve_data_config(pretrained_cfg=config.to_dict())
    if found["input_size"][0] != 3:
        raise ValueError(
            f"the weights of {name} are for images of {found['input_size'][0]} channels, but a detector has three:"
            " choose another network, or train from scratch"
        )
    return Preprocessing(_three(found["mean"]), _three(found["std"]))


def of_transformers(name: str) -> Preprocessing:
    """That of a transformers classifier, found by what its image processor makes of black, red, green and blue images.

    So rescaling, offsets, normalization and flipped channels are whatever the processor does, in whichever settings.

    Raises:
        FileNotFoundError: there is no processor beside the network.
        ValueError: it does not make one picture of three channels, or does more to them than to normalize and flip.
    """
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{name} has no preprocessor_config.json that can be had, which says how its images are normalized: put it"
            f" beside the weights, or train from scratch ({brief(error)})"
        ) from error
    try:
        black, *primary = (_processed(processor, colour) for colour in _COLOURS)
    except Exception as error:  # each processor says it in its own way
        raise ValueError(
            f"the image processor of {name} ({type(processor).__name__}) does not make one picture of three channels:"
            f" choose another network, or train from scratch ({brief(error)})"
        ) from error
    gains = torch.stack([colour - black for colour in primary])  # [colour, channel]
    for order, places in zip(CHANNEL_ORDERS, ([0, 1, 2], [2, 1, 0])):
        own = gains[[0, 1, 2], places]
        if bool((own > 0).all()) and torch.allclose(gains.abs().sum(), own.sum(), rtol=1e-4):
            return Preprocessing(_digits(-black[places] / own), _digits(1 / own), order)
    raise ValueError(
        f"the image processor of {name} does more to the channels than to normalize and flip them: choose another"
        " network, or train from scratch"
    )


def _processed(processor: Any, colour: tuple[int, int, int]) -> torch.Tensor:
    """What a processor makes of the channels of an image of one colour, `[3]`."""
    given = processor(images=Image.new("RGB", (_SIDE, _SIDE), colour), return_tensors="pt")["pixel_values"]
    if given.dim() != 4 or given.shape[:2] != (1, 3):
        raise ValueError(f"an image becomes {list(given.shape)}")
    return given[0, :, given.shape[2] // 2, given.shape[3] // 2].double()


def _digits(values: torch.Tensor) -> Channels:
    """Numbers of float32 without the digits that rounding has left in them."""
    red, green, blue = (float(f"{value:.6g}") + 0.0 for value in values.tolist())
    return red, green, blue


def _three(values: float | Sequence[float]) -> Channels:
    """A number a channel, where there may be one for all."""
    given = [values] if isinstance(values, (int, float)) else list(values)
    red, green, blue = given * 3 if len(given) == 1 else given
    return red, green, blue
