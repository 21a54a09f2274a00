"""The images that a quickstart is made of: those that come with the package, or drawings of a model without images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from sona_pipeline.common.assets import EMBEDDED_MODELS
from sona_pipeline.common.disk import make_folder
from sona_pipeline.data import sample
from sona_pipeline.data.image_set import ImageSet
from sona_pipeline.data.images import open_images
from sona_pipeline.generation.drawing import draw
from sona_pipeline.generation.ood_labels import embedded_labels

CLASSES = 10
"""The first labels of the model for colour are the classes of CIFAR-10."""
DRAWN = {"train": 100, "validation": 30, "test": 60, "near": 60}
"""Drawings of each label by what they are for."""


@dataclass(frozen=True)
class Bundle:
    """Images of one kind.

    Attributes:
        train, validation, test: labelled ID images.
        near, far: OOD test images by name.
        ood_labels: that outliers take on.
    """

    train: ImageSet
    validation: ImageSet
    test: ImageSet
    near: dict[str, ImageSet]
    far: dict[str, ImageSet]
    ood_labels: tuple[str, ...]


def bundle_of(model: str, folder: Path) -> Bundle:
    """The images that go with an embedded model.

    Args:
        model: "tiny", with the sample that comes with the package; or "cifar", of whose data nothing may be shipped,
            so that its images are drawings of the model itself.
        folder: for drawings, which are made once.

    Raises:
        ValueError: there is no such model.
    """
    check_model(model)
    return _sample() if model == "tiny" else _drawn(folder)


def check_model(model: str) -> None:
    """Raise ValueError unless images go with the model."""
    if model not in EMBEDDED_MODELS:
        raise ValueError(
            f"the model is {model!r}, but has to be one of {sorted(EMBEDDED_MODELS)}: images go with these"
        )


def _sample() -> Bundle:
    train, validation, test = (sample.id_images(part) for part in ("train", "validation", "test"))
    return Bundle(train, validation, test, sample.near_ood(), sample.far_ood(), sample.OOD_LABELS)


def _drawn(folder: Path) -> Bundle:
    """Of the labels that are no classes of CIFAR-10, every tenth is near-OOD."""
    known = embedded_labels("cifar")
    classes, others = known[:CLASSES], known[CLASSES:]
    near = others[::10]
    drawn = {
        part: _drawings(folder / part, near if part == "near" else classes, count, seed)
        for seed, (part, count) in enumerate(DRAWN.items())
    }
    unseen = {name: drawn["near"].with_classes([name]) for name in near}
    labels = tuple(name for name in others if name not in near)
    return Bundle(drawn["train"], drawn["validation"], drawn["test"], unseen, sample.far_ood(), labels)


def _drawings(folder: Path, labels: Sequence[str], count: int, seed: int) -> ImageSet:
    """An image folder with `count` drawings of each label; it is whole or not there."""
    if not folder.exists():
        make_folder(folder.parent)
        with TemporaryDirectory(dir=folder.parent) as place:
            prompts = [f"a photo of a {label}" for label in labels for _ in range(count)]
            for number, image in enumerate(draw("cifar", prompts, seed)):
                path = Path(place) / folder.name / labels[number // count] / f"{number % count:03d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                image.save(path)
            (Path(place) / folder.name).rename(folder)
    return open_images(folder)
