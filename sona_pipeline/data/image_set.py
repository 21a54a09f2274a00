"""Images with keys and classes: the small interface that every source of images has."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from sona_pipeline.data.class_names import finder


@dataclass(frozen=True)
class ImageSet:
    """Images with a stable key each, and a class each where the source has classes.

    Attributes:
        keys: one unique name an image; the randomness of an outlier follows from it.
        labels: class index of every image, in `range(len(classes))`; empty when the source has no classes.
        classes: class names, in the order of their indices.
    """

    keys: tuple[str, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]
    _open: Callable[[int], Image.Image]

    def __len__(self) -> int:
        return len(self.keys)

    def image(self, index: int) -> Image.Image:
        """Image `index` as stored, turned upright by its EXIF tag; OSError if it cannot be decoded."""
        return self._open(index)

    def label_name(self, index: int) -> str:
        """Class name of image `index`."""
        return self.classes[self.labels[index]]

    def take(self, indices: Sequence[int]) -> ImageSet:
        """The images at `indices`, in that order, with all class names kept."""
        indices = list(indices)
        return replace(
            self,
            keys=tuple(self.keys[i] for i in indices),
            labels=tuple(self.labels[i] for i in indices) if self.labels else (),
            _open=lambda i: self._open(indices[i]),
        )

    def changed(self, change: Callable[[Image.Image], Image.Image]) -> ImageSet:
        """The same images after a change, which is made whenever one is opened."""
        return replace(self, _open=lambda index: change(self._open(index)))

    def of_classes(self, names: Sequence[str]) -> ImageSet:
        """Only the images of the classes `names`, with all class names kept.

        Raises:
            ValueError: there is no such class.
        """
        wanted = set(self._indices(names))
        return self.take([i for i, label in enumerate(self.labels) if label in wanted])

    def with_classes(self, names: Sequence[str]) -> ImageSet:
        """Only the images of the classes `names`, whose order gives the new class indices."""
        kept = self.of_classes(names)
        number = {index: new for new, index in enumerate(self._indices(names))}
        return replace(kept, labels=tuple(number[label] for label in kept.labels), classes=tuple(names))

    def _indices(self, names: Sequence[str]) -> list[int]:
        find = finder({name: i for i, name in enumerate(self.classes)})
        found = [find(name) for name in names]
        if missing := [name for name, index in zip(names, found) if index is None]:
            raise ValueError(f"no class named {missing}; the data has {list(self.classes)}")
        return [index for index in found if index is not None]

    def drawn(self, count: int) -> ImageSet:
        """`count` images drawn at random, the same in every run; a smaller draw is part of a larger one."""
        if count >= len(self):
            return self
        digests = [hashlib.sha256(key.encode()).digest() for key in self.keys]
        return self.take(sorted(sorted(range(len(self)), key=digests.__getitem__)[:count]))


def hold_out(images: ImageSet, share: float, seed: int) -> tuple[ImageSet, ImageSet]:
    """Hold out a share of every class at random, at least one image and never all: (the rest, the held-out images).

    Args:
        images: labelled.
        share: in (0, 1).
        seed: of the draw.

    Raises:
        ValueError: a class has one image only.
    """
    rng = np.random.default_rng(seed)
    held_out: list[int] = []
    for label in sorted(set(images.labels)):
        members = rng.permutation([i for i, other in enumerate(images.labels) if other == label])
        if len(members) < 2:
            raise ValueError(
                f"class {images.classes[label]!r} has {len(members)} image: two are needed to hold one out, so add one"
                " or leave the class out"
            )
        count = min(len(members) - 1, max(1, round(share * len(members))))
        held_out += members[:count].tolist()
    kept = sorted(set(range(len(images))) - set(held_out))
    return images.take(kept), images.take(sorted(held_out))


def are_same(one: ImageSet, other: ImageSet, sample: int = 8) -> bool:
    """Whether two sets are of the same images: by their keys, and by the pixels of an even sample.

    Keys alone do not tell, since files of two splits may have the same names.
    """
    if one.keys != other.keys:
        return False
    for i in range(0, len(one), max(1, len(one) // sample)):
        try:
            mine, theirs = (images.image(i).convert("RGB") for images in (one, other))
        except OSError:
            continue
        if (mine.size, mine.tobytes()) != (theirs.size, theirs.tobytes()):
            return False
    return True


def check_there(images: ImageSet, sample: int = 16) -> None:
    """Raise FileNotFoundError or PermissionError if the first image, and all of an even sample, are not to be had.

    A root that is wrong, or a disk that is not there, is told in this way before long work; single images that are
    missing are not.
    """
    errors = []
    for i in range(0, len(images), max(1, len(images) // sample)):
        try:
            images.image(i)
        except (FileNotFoundError, PermissionError) as error:
            errors.append(error)
            continue
        except (OSError, ValueError):
            pass
        return
    if errors:
        raise type(errors[0])(
            f"none of the {len(images)} images can be had; the first: {errors[0]}. Is its disk mounted, and are the"
            " paths and the image root right?"
        )


def readable(images: ImageSet, unreadable: list[str]) -> Iterator[Image.Image]:
    """The images that can be read, in order; why others cannot is added to `unreadable`.

    Raises:
        OSError: the disk fails.
    """
    for index, key in enumerate(images.keys):
        try:
            yield images.image(index)
        except OSError as error:
            if error.errno is not None:
                raise
            unreadable.append(f"{key}: {error}")


def is_grey(images: ImageSet, sample: int = 64) -> bool:
    """Whether an even sample of the set holds grey images only (stored so, or with three equal channels).

    Images that cannot be read do not count.

    Args:
        images: of any mode.
        sample: about how many are looked at.
    """
    step = max(1, len(images) // sample)
    for i in range(0, len(images), step):
        try:
            pixels = np.asarray(images.image(i).convert("RGB"))
        except OSError:
            continue
        if not (pixels == pixels[..., :1]).all():
            return False
    return True
