"""Small pictures for the tests of detectors: noisy bars, in one direction for each class."""

import numpy as np
from PIL import Image

from sona_pipeline.data.image_set import ImageSet
from sona_pipeline.data.outlier_set import OutlierPairs

SIDE = 16


def shapes(kinds: list[str], count: int, seed: int, labelled: bool = True) -> ImageSet:
    """`count` pictures of "horizontal", "vertical" or "diagonal" bars, by turns."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE]
    bars = {"horizontal": y, "vertical": x, "diagonal": x + y}
    labels = [k % len(kinds) for k in range(count)]
    pictures = []
    for label in labels:
        wave = 128 + 80 * np.sin(bars[kinds[label]] * 1.3 + rng.uniform(0, 6))
        pictures.append(Image.fromarray((wave + rng.normal(0, 12, wave.shape)).clip(0, 255).astype(np.uint8)))
    keys = tuple(f"{seed}-{k}" for k in range(count))
    return ImageSet(keys, tuple(labels) if labelled else (), tuple(kinds) if labelled else (), pictures.__getitem__)


def beside(images: ImageSet, outliers: ImageSet, strength: float = 1.0) -> OutlierPairs:
    """ID images paired with outliers of one strength, without round trips."""
    return OutlierPairs(images, outliers, None, (strength,) * len(outliers))


def damaged(images: ImageSet, *indices: int) -> ImageSet:
    """The same images, of which some cannot be read."""

    def image(index: int) -> Image.Image:
        if index in indices:
            raise OSError(f"{images.keys[index]} cannot be read as an image: broken")
        return images.image(index)

    return ImageSet(images.keys, images.labels, images.classes, image)
