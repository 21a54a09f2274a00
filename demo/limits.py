"""What a visitor may ask for: bounds on uploads and settings, and errors as messages."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import torch
from gradio.data_classes import ImageData
from PIL import Image

from sona_pipeline import decoded

UPLOAD_BYTES = 10 << 20
PIXELS = 16_000_000
STEPS, SCALE = 100, 30.0
LABEL_LENGTH = 80
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Others need programs or decoders that strangers' files should not reach."""


def upload(path: str | None = None, **layout: Any) -> gr.Image:
    """An image that a visitor uploads, handed on as the path of the file, which `opened` looks into.

    gradio would open it at once, and has no message for what is no image.
    """
    image = gr.Image(path, type="filepath", sources=["upload", "clipboard"], height=240, **layout)

    def path_of(payload: ImageData | None) -> str | None:
        return payload.path if payload else None

    image.preprocess = path_of  # type: ignore[method-assign] # gradio's page knows no component of another class
    return image


def in_range(preprocess: Callable) -> Callable:
    """What takes the place of gradio's `preprocess` of numbers, which has no message for one that is left empty.

    The new one raises `gr.Error` for that, and for what is no number or out of the range of its field.
    """

    @functools.wraps(preprocess)
    def checked(field: gr.Number | gr.Slider, value: Any) -> float:
        name, low, high = str(field.label).partition(":")[0], field.minimum, field.maximum
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not low <= value <= high:
            what = "empty" if value in (None, "") else repr(value)
            raise gr.Error(f"{name!r} is {what}: give a number from {low} to {high}.", print_exception=False)
        return preprocess(field, value)

    return checked


def opened(path: str | None) -> Image.Image:
    """An uploaded image, decoded and upright.

    Raises:
        ValueError: there is none, it has too many pixels, or is no image.
    """
    if not path:
        raise ValueError("There is no image: upload one, or pick an example.")
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
        if width * height > PIXELS:
            raise Image.DecompressionBombError
        return decoded(lambda: Image.open(path, formats=FORMATS), Path(path).name)
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"The image has too many pixels: at most {PIXELS // 1_000_000} million are taken, so scale it down."
        ) from error
    except OSError as error:
        kind = Path(path).suffix or "file without a suffix"
        raise ValueError(f"This {kind} cannot be read as an image: upload one of {', '.join(FORMATS)}.") from error


async def refuse_address(url: str, cache_dir: str) -> str:
    """What takes the place of gradio's download of a picture that is given by its address.

    Raises:
        gr.Error: always.
    """
    raise gr.Error("Addresses are not taken: upload the image itself.", print_exception=False)


def checked_label(text: str | None, name: str) -> str:
    """A label without spaces around it.

    Raises:
        ValueError: it is empty or too long.
    """
    label = " ".join((text or "").split())
    if not label:
        raise ValueError(f"The {name} is empty: say in a word or two what it is.")
    if len(label) > LABEL_LENGTH:
        raise ValueError(f"The {name} has {len(label)} characters, but at most {LABEL_LENGTH} are taken.")
    return label


def with_messages(handler: Callable) -> Callable:
    """The event handler, with errors that a visitor can mend shown as messages on the page.

    The new handler is a function or a generator, as the given one is, and raises `gr.Error` in place of these errors.
    """
    mendable = (ValueError, TypeError, OSError, FloatingPointError, torch.OutOfMemoryError)
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def stream(*args: Any) -> Iterator[Any]:
            try:
                yield from handler(*args)
            except mendable as error:
                raise gr.Error(str(error), print_exception=False) from error

        return stream

    @functools.wraps(handler)
    def answer(*args: Any) -> Any:
        try:
            return handler(*args)
        except mendable as error:
            raise gr.Error(str(error), print_exception=False) from error

    return answer
