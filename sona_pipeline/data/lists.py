"""Image lists of OpenOOD: lines `path label`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from sona_pipeline.data.image_set import ImageSet
from sona_pipeline.data.imaging import image_suffixes, upright


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
