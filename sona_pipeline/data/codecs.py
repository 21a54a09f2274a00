"""How outliers and round trips are kept: their size, and a codec, the same for both."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any

from PIL import Image, features

from sona_pipeline.data.imaging import scaled, with_short_side
from sona_pipeline.data.settings import CODECS


@dataclass(frozen=True)
class Codec:
    """A format of image files.

    Attributes:
        suffix: of the files, without the dot.
        format: what Pillow calls it.
        library: what Pillow calls the library that it needs.
        options: of Pillow's `save`.
        quality: that it has unless another one is asked for; None if it loses nothing.
    """

    suffix: str
    format: str
    library: str
    options: dict[str, Any] = field(default_factory=dict)
    quality: int | None = None

    def encoded(self, image: Image.Image, quality: int | None = None) -> bytes:
        """An image as a file."""
        options = self.options if quality is None else self.options | {"quality": quality}
        content = io.BytesIO()
        image.save(content, self.format, **options)
        return content.getvalue()


PNG = Codec("png", "PNG", "zlib")
WEBP = Codec("webp", "WEBP", "webp", {"lossless": True})
JPEG = Codec("jpg", "JPEG", "jpg", {"optimize": True}, quality=90)


@dataclass(frozen=True)
class KeptForm:
    """The form that the pictures of an outlier set are kept in.

    Attributes:
        model_size: side in pixels that they have in the diffusion model.
        size: side that they are scaled to and kept at.
        codec: a name in `CODECS`.
        quality: of the codec, 1 to 100; None if it loses nothing.
    """

    model_size: int
    size: int
    codec: str = "png"
    quality: int | None = None

    def encoded(self, image: Image.Image) -> bytes:
        """An image of the model, scaled and as a file."""
        return CODECS[self.codec].encoded(scaled(image, (self.size, self.size)), self.quality)

    def undergone(self, image: Image.Image) -> Image.Image:
        """The whole of an ID image after all that its outlier undergoes besides the model: scaling, and a lossy codec.

        So it has no finer detail than the outlier, and no other traces of scaling or of the codec.
        """
        image = with_short_side(with_short_side(image, self.model_size), self.size)
        if self.quality is None:
            return image
        return Image.open(io.BytesIO(CODECS[self.codec].encoded(image, self.quality)))


def settled_quality(name: str, quality: int | None) -> int | None:
    """The quality that a codec writes with; None for one that loses nothing.

    Args:
        name: of the codec.
        quality: that is asked for; None for the codec's own.

    Raises:
        ValueError: Pillow lacks the codec, or it has no quality.
    """
    codec = CODECS[name]
    if not features.check(codec.library):
        raise ValueError(
            f"the codec is {name!r}, which this Pillow lacks: install one that has it, or take another codec"
        )
    if quality is not None and codec.quality is None:
        raise ValueError(
            f"the quality is {quality}, but {name!r} loses nothing and has none: leave it out, or take 'jpeg'"
        )
    return codec.quality if quality is None else quality
