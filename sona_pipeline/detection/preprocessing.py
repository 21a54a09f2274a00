"""How the pretrained networks of timm and transformers have their images: normalization and order of the channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from sona_pipeline.common.messages import brief

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CHANNELS = {"RGB": 3, "BGR": 3, "L": 1, "RGBA": 4}
"""Numbers of channels that networks take, by what the channels are."""
LUMA = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in a grey image (ITU-R BT.601), as Pillow has them."""
Channels = tuple[float, float, float]
_COLOURS = ((0, 0, 0), (255, 0, 0), (0, 255, 0), (0, 0, 255))
_SIDE, _LONG = 64, 1024


@dataclass(frozen=True)
class Preprocessing:
    """What is done to the pixels of an image in [0, 1] before a network sees them.

    Attributes:
        mean, std: of red, green and blue, by which they are normalized.
        channel_order: "RGB"; "BGR" for a network that has blue first, "L" for one of grey images, "RGBA" for one with a
            fourth channel, which is 1 where an image is not transparent.
        image_size: side in pixels of the square that the network sees, if that is known.
        crop_pct: share of the short side of an image that is in it.
    """

    mean: Channels = IMAGENET_MEAN
    std: Channels = IMAGENET_STD
    channel_order: str = "RGB"
    image_size: int | None = None
    crop_pct: float = 1.0


def ordered(normal: torch.Tensor, channel_order: str) -> torch.Tensor:
    """Normalized images `[B, 3, H, W]` with the channels `[B, C, H, W]` that a network takes."""
    if channel_order == "BGR":
        return normal.flip(1)
    if channel_order == "L":
        shares = torch.tensor(LUMA, device=normal.device, dtype=normal.dtype).view(1, 3, 1, 1)
        return (normal * shares).sum(dim=1, keepdim=True)
    return torch.cat([normal, torch.ones_like(normal[:, :1])], dim=1) if channel_order == "RGBA" else normal


def of_timm(name: str) -> Preprocessing:
    """That of a timm network's pretrained weights.

    Raises:
        ValueError: it takes images of another number of channels than three.
    """
    import timm

    config = timm.get_pretrained_cfg(name, allow_unregistered=True)
    if config is None:
        return Preprocessing()
    found = of_timm_settings(config.to_dict(), name)
    if found.channel_order != "RGB":
        raise ValueError(
            f"the weights of {name} are for images of {CHANNELS[found.channel_order]} channels, but this is for three:"
            " choose another network, or train from scratch"
        )
    return found


def of_timm_settings(settings: dict, name: str) -> Preprocessing:
    """That in the settings of timm's pretrained weights, as its registry or the config.json beside them has it.

    Raises:
        ValueError: images are not square, or of another number of channels than one, three or four.
    """
    from timm.data import resolve_data_config

    found = resolve_data_config(pretrained_cfg=settings)
    channels, height, width = found["input_size"]
    orders = {1: "L", 3: "RGB", 4: "RGBA"}
    if channels not in orders or height != width:
        raise ValueError(
            f"the weights of {name} are for images of {channels} channels and {width} x {height} pixels: choose a"
            " network of one, three or four channels and square images"
        )
    return Preprocessing(three(found["mean"]), three(found["std"]), orders[channels], height, found["crop_pct"])


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
    for order, places in (("RGB", [0, 1, 2]), ("BGR", [2, 1, 0])):
        own = gains[[0, 1, 2], places]
        if bool((own > 0).all()) and torch.allclose(gains.abs().sum(), own.sum(), rtol=1e-4):
            return Preprocessing(_digits(-black[places] / own), _digits(1 / own), order, *_square(processor, gains))
    raise ValueError(
        f"the image processor of {name} does more to the channels than to normalize and flip them: choose another"
        " network, or train from scratch"
    )


def _square(processor: Any, gains: torch.Tensor) -> tuple[int | None, float]:
    """Side of the square that a processor makes of an image, and share of the image in it; (None, 1) if it is none.

    The share is the slope of a ramp from black to white in the middle half of the square: what is cropped is missing at
    both ends, and what is filled up is there.
    """
    ramp = torch.linspace(0, 255, _LONG).round().to(torch.uint8).expand(_LONG, _LONG).numpy()
    seen = processor(images=Image.fromarray(ramp).convert("RGB"), return_tensors="pt")["pixel_values"][0].double()
    height, side = seen.shape[1:]
    if height != side:
        return None, 1.0
    middle = slice(side // 4, side - side // 4)
    levels = seen[0, :, middle].mean(dim=0) / gains[:, 0].sum()
    places = torch.arange(side, dtype=torch.double)[middle] - (side - 1) / 2
    slope = (places * levels).sum() / (places**2).sum()
    return side, min(round(float(slope * side), 3), 1.0)


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


def three(values: float | Sequence[float]) -> Channels:
    """A number for each of red, green and blue, where there may be one for all.

    Raises:
        ValueError: there are two of them, or more than three.
    """
    given = [values] if isinstance(values, (int, float)) else list(values)
    if len(given) not in (1, 3):
        raise ValueError(f"{given} are {len(given)} numbers, but there have to be one, or three")
    red, green, blue = map(float, given * (3 // len(given)))
    return red, green, blue
