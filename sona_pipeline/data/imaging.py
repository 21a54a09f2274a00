"""One image, made ready: decoded, turned upright, and brought to the size and mode that a model takes."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from sona_pipeline.data.settings import RESIZE_MODES

FILTER = Image.Resampling.LANCZOS
"""Lanczos' filter scales every picture; Pillow widens it where a picture becomes smaller, which is antialiasing."""

LONGEST = 16
"""Long side of a whole image as a multiple of the short one, so that a strip does not fill the memory."""

_OF_THE_IMAGE = {None, errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG}

# Registered with Pillow, but films, meteorological data, or code that needs another program to be drawn.
_NO_PICTURES = {"BUFR", "EPS", "FPX", "GRIB", "HDF5", "IPTC", "MIC", "MPEG", "WMF"}


def image_suffixes() -> frozenset[str]:
    """The file suffixes, in lower case, of the picture formats that Pillow reads."""
    suffixes = Image.registered_extensions().items()
    return frozenset(suffix for suffix, name in suffixes if name in Image.OPEN and name not in _NO_PICTURES)


def upright(path: str | Path) -> Image.Image:
    """Decode the image file at `path` and turn it upright; OSError names the file when it cannot be decoded."""
    return decoded(lambda: Image.open(path), str(path))


def decoded(opened: Callable[[], Image.Image | None], name: str) -> Image.Image:
    """What `opened` opens, decoded and turned upright by its EXIF tag.

    Args:
        opened: gives an image that is not decoded yet, or None if there is none.
        name: what an error calls the image.

    Raises:
        OSError: that fails; with `name`, and without an error number if the image is to blame and not the disk.
        FileNotFoundError, PermissionError: the image is not there, or may not be read; without an error number, too.
    """
    try:
        image = opened()
        if image is None:
            raise OSError("there is no image")
        with image:
            _load(image)
            return turned(image)
    except Exception as error:  # decoders fail on damaged files in any way
        if isinstance(error, OSError) and error.errno not in _OF_THE_IMAGE:
            raise
        if isinstance(error, (FileNotFoundError, NotADirectoryError)):
            raise FileNotFoundError(f"{name} cannot be read: {_place(error, name)} does not exist") from error
        if isinstance(error, PermissionError):
            raise PermissionError(f"{name} cannot be read: {_place(error, name)} may not be read") from error
        raise OSError(f"{name} cannot be read as an image: {error}") from error


def _load(image: Image.Image) -> None:
    try:
        image.load()
    except Exception as error:  # of a TIFF, Pillow decodes the pixels first, and then fails on a broken EXIF block
        if image.format != "TIFF" or isinstance(error, OSError) or getattr(image, "tile", None):
            raise


def turned(image: Image.Image) -> Image.Image:
    """`image` turned upright by its EXIF tag, or as it is where a broken EXIF block does not say how."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # Pillow fails on what it cannot read, or cannot write back without the tag
        bare = image.copy()
        for key in ("exif", "Raw profile type exif"):
            bare.info.pop(key, None)
        with suppress(Exception):
            bare.getexif()[ExifTags.Base.Orientation] = image.getexif()[ExifTags.Base.Orientation]
        return ImageOps.exif_transpose(bare)


def _place(error: OSError, name: str) -> str:
    """What an error is about, if that is not what `name` says anyway."""
    return "it" if error.filename is None or os.fspath(error.filename) == name else str(error.filename)


def scaled(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """`image` with the width and height `size`, by `FILTER`; the very same image if it has them."""
    return image if image.size == size else image.resize(size, FILTER)


def fit(image: Image.Image, size: int, mode: str = "RGB", resize_mode: str = "crop") -> Image.Image:
    """`image` as `size` x `size` pixels in `mode`, scaled by `FILTER`.

    16-bit greys are scaled to 8 bits, and floats from [0, 1] if none is above 1; transparent parts are laid on white.

    Args:
        image: of any size and mode.
        size: side of the result in pixels.
        mode: "RGB" or "L".
        resize_mode: "crop" scales the short side to `size` and crops the long one around its centre; "pad" scales the
            long side and fills up with black; "squash" scales both and changes the proportions.

    Raises:
        ValueError: `resize_mode` is not one of these.
    """
    if resize_mode not in RESIZE_MODES:
        raise ValueError(f"the resize mode is {resize_mode!r}, but has to be one of {RESIZE_MODES}")
    image = _opaque(_eight_bits(image)).convert(mode)
    if image.size == (size, size):
        return image
    if resize_mode == "squash":
        return scaled(image, (size, size))
    if resize_mode == "crop":
        return ImageOps.fit(image, (size, size), FILTER)
    width, height = (max(1, round(side * size / max(image.size))) for side in image.size)
    padded = Image.new(mode, (size, size))
    padded.paste(scaled(image, (width, height)), (round((size - width) / 2), round((size - height) / 2)))
    return padded


def plain(image: Image.Image) -> Image.Image:
    """`image` in RGB as it is looked at: of 8 bits, and on white, as `fit` makes it."""
    return _opaque(_eight_bits(image)).convert("RGB")


def with_short_side(image: Image.Image, size: int) -> Image.Image:
    """The whole of `image` in RGB, scaled as `fit` scales it, so that its short side has `size` pixels.

    Its long side is cropped around its centre where it is longer than `LONGEST` times the short one.

    Args:
        image: of any size and mode.
        size: short side of the result in pixels.
    """
    image = plain(image)
    short = min(image.size)
    width, height = (round(min(side, LONGEST * short) * size / short) for side in image.size)
    return image if image.size == (width, height) else ImageOps.fit(image, (width, height), FILTER)


def _eight_bits(image: Image.Image) -> Image.Image:
    if not (image.mode.startswith("I") or image.mode == "F"):
        return image
    values = np.nan_to_num(np.asarray(image, dtype=np.float32), posinf=0, neginf=0)
    highest = values.max(initial=0)
    white = (
        65535 if image.mode.startswith("I;16") or highest > 255 else 1 if image.mode == "F" and highest <= 1 else 255
    )
    return Image.fromarray((values * (255 / white)).round().clip(0, 255).astype(np.uint8))


def _opaque(image: Image.Image) -> Image.Image:
    if "A" not in image.mode and "a" not in image.mode and "transparency" not in image.info:
        return image
    straight = image.convert("LA") if image.mode == "La" else image
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), straight.convert("RGBA"))
