"""The bundled sample: real images for a first run, from Fashion-MNIST and from what scikit-learn ships."""

from __future__ import annotations

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from sona_pipeline.common.assets import SAMPLE
from sona_pipeline.data.image_set import ImageSet
from sona_pipeline.data.images import open_images

OOD_LABELS = ("bag", "sandal")
SIDE = 32


def id_images(part: str) -> ImageSet:
    """The ID images of the part 'train', 'validation' or 'test': six classes of Fashion-MNIST, 32 px, grey."""
    return open_images(SAMPLE / f"{part}.parquet")


def near_ood() -> dict[str, ImageSet]:
    """Test images of the two classes of Fashion-MNIST that neither detector nor diffusion model have seen."""
    images = open_images(SAMPLE / "near.parquet")
    return {name: images.with_classes([name]) for name in images.classes}


def real_outliers() -> ImageSet:
    """Real images of the OOD labels, as many as there are ID training images: what outlier exposure usually has."""
    return open_images(SAMPLE / "outliers.parquet")


def far_ood() -> dict[str, ImageSet]:
    """scikit-learn's handwritten digits, and grey patches of its two photographs."""
    digits = [Image.fromarray((16 * d).clip(0, 255).astype(np.uint8)) for d in load_digits().images]
    return {
        "digits": _in_memory([d.resize((SIDE, SIDE), Image.Resampling.BICUBIC) for d in digits]),
        "photos": _photos(),
    }


def _photos() -> ImageSet:
    """Patches of 64 px in a grid, scaled to 32 px."""
    patches = []
    for photo in load_sample_images().images:
        grey = Image.fromarray(photo).convert("L")
        for top in range(0, grey.height - 63, 32):
            for left in range(0, grey.width - 63, 32):
                patch = grey.crop((left, top, left + 64, top + 64))
                patches.append(patch.resize((SIDE, SIDE), Image.Resampling.LANCZOS))
    return _in_memory(patches)


def _in_memory(pictures: list[Image.Image]) -> ImageSet:
    return ImageSet(tuple(f"{i:05d}" for i in range(len(pictures))), (), (), pictures.__getitem__)
