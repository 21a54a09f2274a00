"""The images of the benchmark: what is trained on, what choices are made by, and what is touched once, at the end."""

from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import numpy as np
from far_kinds import far_kinds

from sona_pipeline import ImageSet, open_images, sample

TRAIN, TEST = "cifar10-train.parquet", "cifar10-test.parquet"
KNOWN, NEAR = "cifar100-aux-train.parquet", "cifar100-near-test.parquet"
FAR = {"mnist": "far-mnist.parquet", "textures": "far-dtd10.parquet"}
VALIDATION_PER_CLASS = 100


@dataclass(frozen=True)
class Data:
    """Images by what they are for.

    Attributes:
        train: labelled ID images that detectors are trained on, and outliers are made of.
        validation: labelled ID images for thresholds, best epochs and choices.
        test: labelled ID images.
        real_outliers: images of the OOD labels, for outlier exposure with real images.
        near_validation: images of classes that the diffusion model knows, and that are neither OOD labels nor among
            the real outliers.
        far_validation: images of another kind, by name: clothing and photographs in grey, which come with the package,
            and those of `far_kinds`.
        near_test: images of classes that nothing has seen.
        far_test: images of another kind, by name.
        ood_labels: classes that the diffusion model knows besides the ID classes, without those of `near_validation`.
    """

    train: ImageSet
    validation: ImageSet
    test: ImageSet
    real_outliers: ImageSet
    near_validation: ImageSet
    far_validation: dict[str, ImageSet]
    near_test: ImageSet
    far_test: dict[str, ImageSet]
    ood_labels: tuple[str, ...]

    def counts(self) -> dict[str, int]:
        """Images of every part."""
        parts = {name: part for name, part in vars(self).items() if isinstance(part, ImageSet)}
        parts |= self.far_validation | self.far_test
        return {name: len(part) for name, part in parts.items()}


def open_data(folder: Path, per_class: int) -> Data:
    """Open the parquet files in `folder`, with `per_class` ID images to train on.

    Every fifth class of CIFAR-100 that the diffusion model knows is kept for validation. Which images are drawn does
    not depend on any seed.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: there are fewer images in a class.
    """
    known = _spoken(open_images(folder / KNOWN))
    held_out = known.classes[::5]
    labels = tuple(name for name in known.classes if name not in held_out)
    train = _spoken(open_images(folder / TRAIN))
    validation = of_each_class(train, 0, VALIDATION_PER_CLASS)
    return Data(
        train=of_each_class(train, VALIDATION_PER_CLASS, per_class),
        validation=validation,
        test=_spoken(open_images(folder / TEST)),
        real_outliers=known.of_classes(labels),
        near_validation=of_each_class(known.with_classes(held_out), 0, VALIDATION_PER_CLASS),
        far_validation={
            "clothing": sample.id_images("validation"),
            "photos": sample.far_ood()["photos"],
            **far_kinds(),
        },
        near_test=open_images(folder / NEAR),
        far_test={name: open_images(folder / file) for name, file in FAR.items()},
        ood_labels=labels,
    )


def write_diffusion_set(folder: Path, path: Path) -> int:
    """Write the images that the diffusion model is trained on, all of `TRAIN` and `KNOWN`, as one parquet file."""
    parts = [_as_table(datasets.Dataset.from_parquet(str(folder / file))) for file in (TRAIN, KNOWN)]
    table = datasets.concatenate_datasets(parts)
    table.to_parquet(path)
    return len(table)


def write_folders(images: ImageSet, folder: Path) -> None:
    """Write images as PNG files in class folders, by their number in the set."""
    for index in range(len(images)):
        path = folder / images.label_name(index) / f"{index:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        images.image(index).save(path)


def _as_table(part: datasets.Dataset) -> datasets.Dataset:
    names = [name.replace("_", " ") for name in part.features["label"].names]
    words = [names[label] for label in part["label"][:]]
    return part.select_columns(["image"]).add_column("label", words)


def _spoken(images: ImageSet) -> ImageSet:
    """The set with class names as one says them, which is how prompts have them."""
    return replace(images, classes=tuple(name.replace("_", " ") for name in images.classes))


def of_each_class(images: ImageSet, start: int, count: int) -> ImageSet:
    """`count` images of every class, from number `start` of a fixed random order on."""
    labels, order = np.array(images.labels), np.random.default_rng(0).permutation(len(images))
    taken: list[int] = []
    for label, name in enumerate(images.classes):
        members = order[labels[order] == label][start : start + count]
        if len(members) < count:
            raise ValueError(f"class {name!r} has {len(members)} images left for {count}: ask for fewer")
        taken += members.tolist()
    return images.take(sorted(taken))
