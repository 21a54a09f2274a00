"""Image lists of OpenOOD: lines `path label`."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from sona_pipeline.common.files import read_text
from sona_pipeline.common.names import expanded
from sona_pipeline.data.image_set import ImageSet
from sona_pipeline.data.imaging import image_suffixes, upright


def open_list(path: str | Path, root: str | Path, names: Mapping[int, str] | None = None) -> ImageSet:
    """Open an image list of OpenOOD: lines `path label`, parted at their first space.

    Paths with backslashes, as Windows has them, are taken for such with slashes where these lead to the first of them.

    Args:
        path: of the list, in UTF-8, or in UTF-16 if it begins with the mark of that.
        root: folder that the paths in it start from.
        names: of the classes by their numbers, in the order of the class indices; the list need not have them all.
            By default those of `list_classes`; if empty, the images are unlabelled whatever the list says.

    Raises:
        FileNotFoundError: the paths have backslashes, and the first of them leads nowhere with slashes, either.
        ValueError: the list is empty or in another encoding, a line has no number, or a number has no name.
    """
    path, root = expanded(path), expanded(root)
    files, numbers = _read_list(path)
    files = _with_slashes(path, root, files)
    if names is None:
        names = _list_classes(path, files, numbers)
    if names and (unknown := sorted(set(numbers) - set(names))):
        raise ValueError(f"{path} has labels {unknown[:5]}, which are no classes: it belongs to other data")
    index = {number: i for i, number in enumerate(names)}
    return ImageSet(
        keys=tuple(files),
        labels=tuple(index[number] for number in numbers) if names else (),
        classes=tuple(names.values()),
        _open=lambda i: upright(root / files[i]),
    )


def is_image_list(source: str | Path) -> bool:
    """Whether `open_images` takes the source for an image list."""
    path = expanded(source)
    return path.is_file() and path.suffix.lower() not in {".parquet", *image_suffixes()}


def list_classes(path: str | Path) -> dict[int, str]:
    """Names of the classes in an image list by their numbers, in rising order; none if all labels are negative.

    A class is named after the folder of its images if each class has one of its own, else by its number.

    Raises:
        ValueError: the list is empty or in another encoding, a line has no number, or only some of the labels are
            negative.
    """
    path = expanded(path)
    return _list_classes(path, *_read_list(path))


def check_listed_once(path: Path, files: Iterable[str]) -> None:
    """Raise ValueError if one of the `files` in an image list stands there twice."""
    seen: set[str] = set()
    for file in files:
        if (place := posixpath.normpath(file)) in seen:
            raise ValueError(f"{path} lists {file} twice: leave it in one of these lines")
        seen.add(place)


def _read_list(path: Path) -> tuple[list[str], list[int]]:
    """Paths and labels in an image list."""
    files, numbers = [], []
    for count, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            file, _, label = line.strip().partition(" ")
            if not re.fullmatch(r"-?\d+", label.strip()):
                raise ValueError(f"line {count} of {path} is {line!r}, but has to be `path label` with a whole number")
            files.append(file)
            numbers.append(int(label))
    if not files:
        raise ValueError(f"{path} lists no images")
    return files, numbers


def _with_slashes(path: Path, root: Path, files: list[str]) -> list[str]:
    first = next((file for file in files if "\\" in file), None)
    if first is None:
        return files
    slashed = first.replace("\\", "/")
    if (root / slashed).exists():
        return [file.replace("\\", "/") for file in files]
    if (root / first).exists():
        return files
    raise FileNotFoundError(
        f"{path} lists {first}, but neither that nor {slashed} lies in {root}: write paths with slashes, from the image"
        " root on"
    )


def _list_classes(path: Path, files: list[str], numbers: list[int]) -> dict[int, str]:
    if min(numbers) < 0 <= max(numbers):
        raise ValueError(f"{path} mixes labels with -1, which is no class: split it into two lists")
    folders: dict[int, set[str]] = {number: set() for number in sorted(set(numbers)) if number >= 0}
    for file, number in zip(files, numbers if folders else ()):
        folders[number].add(file.replace("\\", "/").rpartition("/")[0].rpartition("/")[2])
    names = [name for some in folders.values() for name in some]
    told_apart = len(names) == len(set(names)) == len(folders) and all(names)
    return dict(zip(folders, names if told_apart else map(str, folders)))
