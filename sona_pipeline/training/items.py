"""What a training step is fed with: ID images, their outliers and their round trips, decoded and augmented."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, Sampler, default_collate, get_worker_info

from sona_pipeline.data.class_names import composed, same_names
from sona_pipeline.data.image_set import ImageSet
from sona_pipeline.data.outlier_set import OutlierPairs

Augment = Callable[[torch.Tensor], torch.Tensor]
CACHE_BYTES = 2 << 30
TRIES = 100
"""Random outliers of which one at least has to be readable."""
SHUFFLED = 10_000
"""Sets of outliers up to this size are shuffled for each draw, which takes time in proportion to their size."""


@dataclass(frozen=True)
class TrainingSets:
    """What a detector is trained on.

    Attributes:
        images: labelled ID images.
        validation: labelled ID images that are not trained on, or None.
        outliers: outliers of the very images, in pairs; or any images; or None.
    """

    images: ImageSet
    validation: ImageSet | None = None
    outliers: OutlierPairs | ImageSet | None = None

    def check(self, min_strength: float) -> None:
        """Raise ValueError if the sets cannot be trained on, or do not go together."""
        _check_labels(self.images, "training")
        if self.validation is not None:
            _check_labels(self.validation, "validation")
            if not same_names(self.validation.classes, self.images.classes):
                raise ValueError(
                    f"validation classes {self.validation.classes} are not the training classes {self.images.classes}"
                )
        pairs = self.outliers
        if not isinstance(pairs, OutlierPairs):
            if pairs is not None and not len(pairs):
                raise ValueError("the set of outliers is empty: leave it out to train by cross-entropy only")
        elif pairs.images.keys != self.images.keys:
            raise ValueError(
                f"the {len(self.images)} ID images are not the {len(pairs.images)} that the outliers were made of:"
                " open the outlier set beside these images, and train on its `images`"
            )
        elif max(pairs.strengths) < min_strength:
            raise ValueError(
                f"no outlier has a strength of {min_strength} or more, the highest is {max(pairs.strengths):.2g}: lower"
                " `min_strength`"
            )


def in_order_of(images: ImageSet, classes: Sequence[str]) -> ImageSet:
    """The images with their classes in the order and spelling of `classes`, if these are the same by their names."""
    if sorted(map(composed, images.classes)) != sorted(map(composed, classes)) or images.classes == tuple(classes):
        return images
    return images.with_classes(classes)


def _check_labels(images: ImageSet, kind: str) -> None:
    if not images.labels:
        raise ValueError(f"the {kind} images have no classes: put them into sub-folders, one a class")
    if len(images.classes) < 2:
        raise ValueError(f"a detector needs two classes or more; the {kind} images have only {list(images.classes)}")
    if wrong := [label for label in images.labels if not 0 <= label < len(images.classes)]:
        raise ValueError(f"a label of the {kind} images is {wrong[0]}, but there are {len(images.classes)} classes")
    present = set(images.labels)
    if kind == "training" and len(present) < len(images.classes):
        missing = [name for label, name in enumerate(images.classes) if label not in present]
        raise ValueError(f"the classes {missing[:5]} have no training images: add some, or leave the classes out")


class Pixels(Dataset):
    """Images of a set as uint8 `[3, S, S]`; decoded once and kept in memory as long as there is room.

    Args:
        images: the set.
        read: image to tensor.
        augment: applied anew each time.
    """

    def __init__(
        self,
        images: ImageSet,
        read: Callable[[Image.Image], torch.Tensor],
        augment: Augment | None = None,
    ):
        self.images, self.read, self.augment = images, read, augment
        self._kept: dict[int, torch.Tensor] = {}
        self._room = CACHE_BYTES

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        pixels = self._kept.get(index)
        if pixels is None:
            pixels = self.read(self.images.image(index))
            if self._room > 0 and get_worker_info() is None:  # a worker sees each image once
                self._kept[index] = pixels
                self._room -= pixels.nbytes
        return self.augment(pixels) if self.augment else pixels


class TrainingItems(Dataset):
    """ID images as dictionaries of `image`, `label` and `place`, and what else there is.

    That is `outlier`, `outlier_place` and `strength`, `reconstruction`, and with two views `view`.
    Outliers of an `OutlierPairs` stay with their sources, and of several each time one is drawn; any other set gives a
    random outlier each time. In place of an item with an image that cannot be read comes the next one; `rejects` then
    says which was left out, and why. ID images undergo the scaling and the lossy codec that their outliers have
    undergone.

    Args:
        images: labelled ID images.
        outliers: of the same images, or any images.
        pixels: from an image set to its augmented pixels.
        outlier_pixels: the same of outliers.
        views: of each ID image, with an augmentation of its own each: 1 or 2.
    """

    def __init__(
        self,
        images: ImageSet,
        outliers: OutlierPairs | ImageSet | None,
        pixels: Callable[[ImageSet], Pixels],
        outlier_pixels: Callable[[ImageSet], Pixels],
        views: int = 1,
    ):
        self.views = views
        form = outliers.form if isinstance(outliers, OutlierPairs) else None
        self.images, self.image = images, pixels(images.changed(form.undergone) if form else images)
        self.is_paired = isinstance(outliers, OutlierPairs)
        self.outlier: Pixels | None = None
        self.reconstruction: Pixels | None = None
        if isinstance(outliers, OutlierPairs):
            self.outlier = outlier_pixels(outliers.outliers)
            self.strengths = torch.tensor(outliers.strengths)
            self.reconstruction = pixels(outliers.reconstructions) if outliers.reconstructions else None
        elif outliers:
            self.outlier = outlier_pixels(outliers)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict:
        rejects: list[dict] = []
        for step in range(len(self)):
            place = (index + step) % len(self)
            try:
                return self._item(place, rejects) | {"rejects": rejects}
            except OSError as error:
                rejects.append({"key": self.images.keys[place], "reason": _fault_of_image(error)})
        raise OSError(f"none of the {len(self)} training images can be read; the first: {rejects[0]['reason']}")

    def _item(self, index: int, rejects: list[dict]) -> dict:
        item = {"image": self.image[index], "label": self.images.labels[index], "place": index}
        if self.views == 2:
            item["view"] = self.image[index]
        if self.outlier is not None and self.is_paired:
            place = index + len(self) * self._drawn_of_several()
            item |= {"outlier": self.outlier[place], "outlier_place": place, "strength": self.strengths[place]}
        elif self.outlier is not None:
            place, pixels = _any_outlier(self.outlier, rejects)
            item |= {"outlier": pixels, "outlier_place": place, "strength": torch.tensor(1.0)}
        if self.reconstruction is not None:
            item["reconstruction"] = self.reconstruction[index]
        return item

    def _drawn_of_several(self) -> int:
        """Which outlier of its several an image comes with this time."""
        count = len(self.strengths) // len(self)
        return int(torch.randint(count, ())) if count > 1 else 0


def _any_outlier(outliers: Pixels, rejects: list[dict]) -> tuple[int, torch.Tensor]:
    """A random outlier that can be read, and its place."""
    for other in _drawn(len(outliers)):
        try:
            return other, outliers[other]
        except OSError as error:
            rejects.append({"key": outliers.images.keys[other], "reason": _fault_of_image(error)})
    raise ValueError(f"{rejects[-1]['reason']}, and so it is with all of {TRIES} outliers or fewer: give images")


def _drawn(count: int) -> Iterator[int]:
    """Up to `TRIES` random indices below `count`: all different ones of a small set, one at a time of a large one."""
    if count <= SHUFFLED:
        yield from torch.randperm(count)[:TRIES].tolist()
    else:
        yield from (int(torch.randint(count, ())) for _ in range(TRIES))


class Plain(Dataset):
    """Images as their pixels, without augmentation; black ones in place of those that cannot be read."""

    def __init__(self, images: ImageSet, read: Callable[[Image.Image], torch.Tensor], size: int):
        self.pixels, self.size = Pixels(images, read), size

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> torch.Tensor:
        try:
            return self.pixels[index]
        except OSError as error:
            _fault_of_image(error)
            return torch.zeros(3, self.size, self.size, dtype=torch.uint8)


class Labelled(Dataset):
    """Images as pairs of pixels and label; None and the reason instead where an image cannot be read."""

    def __init__(self, images: ImageSet, read: Callable[[Image.Image], torch.Tensor]):
        self.images, self.pixels = images, Pixels(images, read)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int] | tuple[None, dict]:
        try:
            return self.pixels[index], self.images.labels[index]
        except OSError as error:
            return None, {"key": self.images.keys[index], "reason": _fault_of_image(error)}


def _fault_of_image(error: OSError) -> str:
    """What is wrong with an image; an error with a number is the disk's, and is raised again."""
    if error.errno is not None:
        raise error
    return str(error)


def readable(items: Sequence[tuple]) -> tuple[torch.Tensor, torch.Tensor, list[dict]]:
    """A batch of what `Labelled` gives: pixels, labels and rejects."""
    good = [(pixels, label) for pixels, label in items if pixels is not None]
    rejects = [reject for pixels, reject in items if pixels is None]
    pixels = torch.stack([pixels for pixels, _ in good]) if good else torch.zeros(0, dtype=torch.uint8)
    return pixels, torch.tensor([label for _, label in good], dtype=torch.long), rejects


def collate(items: Sequence[dict]) -> dict:
    """A batch of items, with their rejects in one list."""
    rejects = [reject for item in items for reject in item.pop("rejects")]
    return default_collate(list(items)) | {"rejects": rejects}


class EpochOrder(Sampler):
    """A random order of `count` items that follows from the seed and the epoch alone."""

    def __init__(self, count: int, seed: int):
        self.count, self.seed, self.epoch = count, seed, 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        order = torch.Generator().manual_seed(mixed_seed(self.seed, self.epoch))
        return iter(torch.randperm(self.count, generator=order).tolist())


def mixed_seed(*numbers: int) -> int:
    """One seed from several numbers."""
    return int(np.random.SeedSequence([number % 2**63 for number in numbers]).generate_state(1)[0])
