"""Labelled and unlabelled images: folders, parquet files, Hub data sets and image lists behind one small interface."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from sona_pipeline.data.imaging import decoded, image_suffixes, upright
from sona_pipeline.data.settings import ImageSource

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


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

    def of_classes(self, names: Sequence[str]) -> ImageSet:
        """Only the images of the classes `names`, with all class names kept.

        Raises:
            ValueError: there is no such class.
        """
        if missing := [name for name in names if name not in self.classes]:
            raise ValueError(f"no class named {missing}; the data has {list(self.classes)}")
        wanted = {self.classes.index(name) for name in names}
        return self.take([i for i, label in enumerate(self.labels) if label in wanted])

    def with_classes(self, names: Sequence[str]) -> ImageSet:
        """Only the images of the classes `names`, whose order gives the new class indices."""
        kept = self.of_classes(names)
        number = {self.classes.index(name): new for new, name in enumerate(names)}
        return replace(kept, labels=tuple(number[label] for label in kept.labels), classes=tuple(names))

    def drawn(self, count: int) -> ImageSet:
        """`count` images drawn at random, the same in every run; a smaller draw is part of a larger one."""
        if count >= len(self):
            return self
        digests = [hashlib.sha256(key.encode()).digest() for key in self.keys]
        return self.take(sorted(sorted(range(len(self)), key=digests.__getitem__)[:count]))


def open_images(
    source: str | Path,
    *,
    split: str = "train",
    image_column: str | None = None,
    label_column: str | None = None,
    image_root: str | Path | None = None,
    class_list: str | Path | None = None,
) -> ImageSet:
    """Open labelled or unlabelled images as an `ImageSet`.

    Args:
        source: one of
            - an image folder, whose sub-folders are the classes, sorted by name, empty ones too; images that lie in the
              folder itself are unlabelled, and a folder may hold one kind only. Hidden files and folders are passed
              over;
            - a parquet file or a folder of them, a folder written by `datasets.save_to_disk`, or the id of a data set
              on the Hub ("owner/name");
            - an image list of OpenOOD, a text file with `path label` on each line. Classes are named after the
              folders of their images where those tell them apart, else by their numbers; -1 is no class.
        split: part of a Hub data set, or of one that `save_to_disk` wrote with several.
        image_column: column of the images; by default the one that holds images.
        label_column: column of the classes; by default the only one with class names, else `label`.
        image_root: folder that the paths of an image list start from; by default the folder of the list.
        class_list: another image list, that of the training images, whose classes an image list has by their numbers;
            ImageNet's validation images lie in one folder, which names no class. For other sources it means nothing.

    Raises:
        FileNotFoundError: `source` is not there.
        ValueError: nothing that can be read as an image lies there, labelled and unlabelled images are mixed, or a
            column is missing or cannot be told.
    """
    path = Path(source)
    shards = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not path.exists():
        table = _hub_table(str(source), split)
    elif (path / "state.json").exists() or (path / "dataset_dict.json").exists():
        table = _saved_table(path, split)
    elif shards and shards[0].suffix == ".parquet":
        table = _parquet_table(shards)
    elif path.suffix.lower() in image_suffixes():
        raise ValueError(f"{path} is a single image: give the folder that it lies in")
    else:
        names = list_classes(class_list) if class_list and is_image_list(path) else None
        return _open_folder(path) if path.is_dir() else open_list(path, image_root or path.parent, names)
    return _open_table(table, str(source), image_column, label_column)


def open_source(source: ImageSource, class_list: str | None = None) -> ImageSet:
    """Open the images that settings name; `class_list` and what is raised are those of `open_images`."""
    return open_images(
        source.data,
        split=source.split,
        image_column=source.image_column,
        label_column=source.label_column,
        image_root=source.image_root,
        class_list=class_list,
    )


def open_list(path: str | Path, root: str | Path, names: Mapping[int, str] | None = None) -> ImageSet:
    """Open an image list of OpenOOD: lines `path label`, parted at their first space.

    Args:
        path: of the list.
        root: folder that the paths in it start from.
        names: of the classes by their numbers, in the order of the class indices; the list need not have them all.
            By default those of `list_classes`; if empty, the images are unlabelled whatever the list says.

    Raises:
        ValueError: the list is empty, a line has no number, or a number has no name.
    """
    files, numbers = _read_list(path)
    if names is None:
        names = _list_classes(path, files, numbers)
    if names and (unknown := sorted(set(numbers) - set(names))):
        raise ValueError(f"{path} has labels {unknown[:5]}, which are no classes: it belongs to other data")
    index = {number: i for i, number in enumerate(names)}
    return ImageSet(
        keys=tuple(files),
        labels=tuple(index[number] for number in numbers) if names else (),
        classes=tuple(names.values()),
        _open=lambda i: upright(Path(root) / files[i]),
    )


def is_image_list(source: str | Path) -> bool:
    """Whether `open_images` takes the source for an image list."""
    path = Path(source)
    return path.is_file() and path.suffix.lower() not in {".parquet", *image_suffixes()}


def list_classes(path: str | Path) -> dict[int, str]:
    """Names of the classes in an image list by their numbers, in rising order; none if all labels are negative.

    A class is named after the folder of its images if each class has one of its own, else by its number.

    Raises:
        ValueError: the list is empty, a line has no number, or only some of the labels are negative.
    """
    return _list_classes(path, *_read_list(path))


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


def _open_folder(root: Path) -> ImageSet:
    files = sorted(image_files(root))
    keys = list(map(_writable, files))
    if not files:
        raise ValueError(f"no images under {root}: expected files such as {root}/<class>/<name>.png")
    is_loose = ["/" not in key for key in keys]
    if any(is_loose) and not all(is_loose):
        stray = keys[is_loose.index(True)]
        raise ValueError(f"{root} mixes class sub-folders with loose images such as {stray}: move those into a class")
    names = [] if is_loose[0] else [key[: key.index("/")] for key in keys]
    folders = [_writable(e.name) for e in os.scandir(root) if e.is_dir() and not e.name.startswith(".")]
    classes = sorted({*names, *folders}) if names else []
    number = {name: i for i, name in enumerate(classes)}
    return ImageSet(
        keys=tuple(keys),
        labels=tuple(number[name] for name in names),
        classes=tuple(classes),
        _open=lambda i: upright(root / files[i]),
    )


def _writable(name: str) -> str:
    """The name of a file, with what is not UTF-8 in it escaped."""
    return name.encode("utf-8", "backslashreplace").decode()


def image_files(root: Path) -> Iterator[str]:
    """Paths of the images under `root`, relative to it and with slashes."""
    suffixes = image_suffixes()
    for folder, inner, files in os.walk(root, followlinks=True):
        inner[:] = [name for name in inner if not name.startswith(".") and not _leads_up(folder, name)]
        place = Path(folder).relative_to(root).as_posix()
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes:
                yield name if place == "." else f"{place}/{name}"


def _leads_up(folder: str, name: str) -> bool:
    """Whether a sub-folder is a link to `folder` itself or to one above it."""
    inner = os.path.join(folder, name)
    return os.path.islink(inner) and Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(inner))


def _read_list(path: str | Path) -> tuple[list[str], list[int]]:
    """Paths and labels in an image list."""
    files, numbers = [], []
    for count, line in enumerate(Path(path).read_text(encoding="utf-8-sig").split("\n"), start=1):
        if line.strip():
            file, _, label = line.strip().partition(" ")
            if not re.fullmatch(r"-?\d+", label.strip()):
                raise ValueError(f"line {count} of {path} is {line!r}, but has to be `path label` with a whole number")
            files.append(file)
            numbers.append(int(label))
    if not files:
        raise ValueError(f"{path} lists no images")
    return files, numbers


def _list_classes(path: str | Path, files: list[str], numbers: list[int]) -> dict[int, str]:
    if min(numbers) < 0 <= max(numbers):
        raise ValueError(f"{path} mixes labels with -1, which is no class: split it into two lists")
    folders: dict[int, set[str]] = {number: set() for number in sorted(set(numbers)) if number >= 0}
    for file, number in zip(files, numbers if folders else ()):
        folders[number].add(file.rpartition("/")[0].rpartition("/")[2])
    names = [name for some in folders.values() for name in some]
    told_apart = len(names) == len(set(names)) == len(folders) and all(names)
    return dict(zip(folders, names if told_apart else map(str, folders)))


def _parquet_table(shards: list[Path]) -> Dataset:
    import datasets

    return datasets.Dataset.from_parquet([str(shard) for shard in shards])


def _saved_table(path: Path, split: str) -> Dataset:
    import datasets

    return _part(datasets.load_from_disk(str(path)), str(path), split)


def _hub_table(name: str, split: str) -> Dataset:
    import datasets

    if not re.fullmatch(r"[^\W_][\w.-]*/[^\W_][\w.-]*", name):
        raise FileNotFoundError(f"{name} does not exist: give an image folder, parquet files, a list or a Hub id")
    try:
        return datasets.load_dataset(name, split=split)
    except (OSError, ConnectionError, datasets.exceptions.DatasetNotFoundError) as error:
        raise FileNotFoundError(f"{name} exists neither here nor as a data set on the Hub: {error}") from error


def _part(table: Dataset | DatasetDict, name: str, split: str) -> Dataset:
    if not isinstance(table, dict):
        return table
    if split not in table:
        raise ValueError(f"{name} has no split {split!r}; its splits are {list(table)}")
    return table[split]


def _open_table(table: Dataset, name: str, image_column: str | None, label_column: str | None) -> ImageSet:
    import datasets

    kinds = {column: type(feature) for column, feature in table.features.items()}
    if label_column and label_column not in kinds:
        raise ValueError(f"{name} has no column {label_column!r} for the classes; its columns are {list(kinds)}")
    image_column = image_column or _only(kinds, datasets.Image) or "image"
    label_column = label_column or _only(kinds, datasets.ClassLabel) or "label"
    if image_column not in kinds:
        raise ValueError(f"{name} has no column {image_column!r} for the images; its columns are {list(kinds)}")
    several = [column for column, kind in kinds.items() if kind is datasets.ClassLabel]
    if label_column not in kinds and len(several) > 1:
        raise ValueError(f"{name} has several columns with classes, {several}: name one as the label column")
    if not len(table):
        raise ValueError(f"{name} holds no images")
    pictures = table.select_columns([image_column]).cast_column(image_column, datasets.Image())
    labels, classes = _labels(table, label_column) if label_column in kinds else ([], [])
    if "key" in kinds:
        keys: Iterable[str] = map(str, table["key"][:])
    else:  # tells tables apart, so that the outliers of one are not taken for those of another
        mark = hashlib.sha256(json.dumps([len(table), labels, classes]).encode()).hexdigest()[:8]
        keys = (f"{mark}/{i:08d}" for i in range(len(table)))
    return ImageSet(
        keys=tuple(keys),
        labels=tuple(labels),
        classes=tuple(classes),
        _open=lambda i: decoded(lambda: pictures[i][image_column], f"row {i} of {name}"),
    )


def _only(kinds: dict[str, type], kind: type) -> str | None:
    found = [column for column, other in kinds.items() if other is kind]
    return found[0] if len(found) == 1 else None


def _labels(table: Dataset, column: str) -> tuple[list[int], list[str]]:
    """Class indices and class names of a column of class labels, or of one of names."""
    values, feature = table[column][:], table.features[column]
    if None in values or -1 in values:
        raise ValueError(f"column {column!r} has rows without a class: leave them out, or use another split")
    if hasattr(feature, "names"):
        return values, feature.names
    order = sorted(set(values))
    number = {value: i for i, value in enumerate(order)}
    return [number[value] for value in values], [str(value) for value in order]
