"""Images of a benchmark, decoded, scaled and cropped to the pixel as OpenOOD does it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, pil_to_tensor, resize

from sona_pipeline.data.image_set import ImageSet
from sona_pipeline.data.imaging import decoded
from sona_pipeline.detection.detector import Detector


@dataclass(frozen=True)
class PreparedSet(ImageSet):
    """An image set that says itself how a network sees its images.

    Attributes:
        resize: the short side, in sides of the network's square, to which images are scaled before they are cropped
            around the centre; None if they are taken whole, and scaled only if they are no such square.
    """

    resize: float | None

    def pixels(self, index: int, side: int) -> torch.Tensor:
        """Image `index` as uint8 `[3, side, side]`; OSError if it cannot be decoded."""
        image = self.image(index)
        if self.resize is None:
            return pil_to_tensor(resize(image, [side, side], InterpolationMode.BILINEAR))
        return pil_to_tensor(
            center_crop(resize(image, [round(self.resize * side)], InterpolationMode.BILINEAR), [side])
        )


def as_seen(images: ImageSet, index: int, detector: Detector) -> torch.Tensor:
    """Image `index` as a detector sees it, uint8 `[3, S, S]`; OSError if it cannot be decoded."""
    if isinstance(images, PreparedSet):
        return images.pixels(index, detector.image_size)
    return detector.one(images.image(index))


def as_stored(path: str | Path) -> Image.Image:
    """The image in a file in RGB, transparent parts as they are and not turned by its EXIF tag, as OpenOOD opens it.

    Raises:
        OSError: it cannot be decoded.
    """

    def opened() -> Image.Image:
        with Image.open(path) as image:
            plain = image.convert("RGB")
        plain.info.clear()  # of the tag by which it would be turned
        return plain

    return decoded(opened, str(path))
