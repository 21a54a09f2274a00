"""Labelled and unlabelled images on disk: image folders and parquet files behind one small interface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


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

    def with_classes(self, names: Sequence[str]) -> ImageSet:
        """Only the images of the classes `names`, whose order gives the new class indices."""
        if missing := [name for name in names if name not in self.classes]:
            raise ValueError(f"no class named {missing}; the data has {list(self.classes)}")
        number = {self.classes.index(name): new for new, name in enumerate(names)}
        kept = self.take([i for i, label in enumerate(self.labels) if label in number])
        return replace(kept, labels=tuple(number[label] for label in kept.labels), classes=tuple(names))


def open_images(source: str | Path) -> ImageSet:
    """Open an image folder or a parquet file (or a folder of parquet files) as an `ImageSet`.

    A folder's sub-folders are its classes, sorted by name; images that lie in the folder itself are taken as
    unlabelled, and a folder may hold one kind only. Hidden files and folders are passed over. A parquet file needs
    a column `image`, and may have `label` (class names from the file's features, or strings) and `key`.

    Raises:
        FileNotFoundError: `source` does not exist.
        ValueError: nothing that can be read as an image lies there, or labelled and unlabelled images are mixed.
    """
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: give an image folder or a parquet file")
    if path.suffix == ".parquet":
        return _open_parquet([path])
    if shards := sorted(path.glob("*.parquet")):
        return _open_parquet(shards)
    return _open_folder(path)


def split(images: ImageSet, share: float, seed: int) -> tuple[ImageSet, ImageSet]:
    """Hold out a share of every class at random, at least one image: (the rest, the held-out images)."""
    rng = np.random.default_rng(seed)
    held_out: list[int] = []
    for label in sorted(set(images.labels)):
        members = rng.permutation([i for i, other in enumerate(images.labels) if other == label])
        if len(members) < 2:
            raise ValueError(
                f"class {images.classes[label]!r} has {len(members)} image: two are needed to hold one out"
            )
        held_out += members[: max(1, round(share * len(members)))].tolist()
    kept = sorted(set(range(len(images))) - set(held_out))
    return images.take(kept), images.take(sorted(held_out))


def _open_folder(root: Path) -> ImageSet:
    files = sorted(
        p.relative_to(root)
        for p in root.rglob("*")
        if p.suffix.lower() in IMAGE_SUFFIXES and not any(part.startswith(".") for part in p.relative_to(root).parts)
    )
    if not files:
        raise ValueError(f"no images under {root}: expected files such as {root}/<class>/<name>.png")
    labelled = [len(p.parts) > 1 for p in files]
    if any(labelled) and not all(labelled):
        stray = files[labelled.index(False)]
        raise ValueError(f"{root} mixes class sub-folders with loose images such as {stray}: move those into a class")
    classes = sorted({p.parts[0] for p in files}) if all(labelled) else []
    number = {name: i for i, name in enumerate(classes)}
    return ImageSet(
        keys=tuple(p.as_posix() for p in files),
        labels=tuple(number[p.parts[0]] for p in files) if classes else (),
        classes=tuple(classes),
        _open=lambda i: upright(root / files[i]),
    )


def _open_parquet(shards: list[Path]) -> ImageSet:
    import datasets

    table = datasets.Dataset.from_parquet([str(p) for p in shards])
    if "image" not in table.column_names:
        raise ValueError(f"{shards[0]} has no column 'image'; its columns are {table.column_names}")
    if not len(table):
        raise ValueError(f"{shards[0]} holds no images")
    table = table.cast_column("image", datasets.Image())
    keys = table["key"][:] if "key" in table.column_names else [f"{i:08d}" for i in range(len(table))]
    labels, classes = [], []
    if "label" in table.column_names:
        labels, feature = table["label"][:], table.features["label"]
        classes = feature.names if isinstance(feature, datasets.ClassLabel) else sorted({str(x) for x in labels})
        if not isinstance(feature, datasets.ClassLabel):
            labels = [classes.index(str(x)) for x in labels]
    return ImageSet(tuple(keys), tuple(labels), tuple(classes), lambda i: ImageOps.exif_transpose(table[i]["image"]))


def upright(path: str | Path) -> Image.Image:
    """Decode the image file at `path` and turn it upright; OSError names the file when it cannot be decoded."""
    try:
        with Image.open(path) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise OSError(f"{path} cannot be read as an image: {error}") from error


def fit(image: Image.Image, size: int, mode: str = "RGB") -> Image.Image:
    """`image` as `size` x `size` pixels in `mode`: the short side is scaled to `size`, the long side centre-cropped.

    Nothing is squashed. 16-bit greys are scaled to 8 bits; transparent parts are laid on white.
    """
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float32)
        white = 65535 if image.mode.startswith("I;16") or values.max() > 255 else 255
        image = Image.fromarray((values * (255 / white)).round().clip(0, 255).astype(np.uint8))
    if "A" in image.mode or "transparency" in image.info:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    image = image.convert(mode)
    return image if image.size == (size, size) else ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)


def is_grey(images: ImageSet, sample: int = 64) -> bool:
    """Whether an even sample of the set holds grey images only (stored so, or with three equal channels).

    Images that cannot be read do not count.
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
