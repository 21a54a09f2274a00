"""Image folders: which of their sub-folders are splits, and which are classes."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from sona_pipeline.data.class_names import check_spellings
from sona_pipeline.data.image_set import ImageSet
from sona_pipeline.data.imaging import image_suffixes, upright
from sona_pipeline.data.walk import Walk, has_loose, sub_folders

logger = logging.getLogger(__name__)

_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_WORDS = {word: split for split, words in _SPLITS.items() for word in words}
_SPLIT = re.compile(rf"(?:.*[-._ 0-9])?({'|'.join(_WORDS)})(?:[-._ 0-9].*)?", re.IGNORECASE)


def open_folder(root: Path) -> ImageSet:
    """Open an image folder, whose sub-folders are the classes; what is raised is told by `open_images`."""
    walk = Walk(root)
    files = sorted(walk)
    if not files:
        raise ValueError(walk.nothing_found())
    walk.report()
    keys = list(map(_writable, files))
    folders = [_writable(name) for name in sub_folders(root) if name not in walk.again]
    labels, classes = labels_by_folder(keys, str(root), folders)
    return ImageSet(tuple(keys), labels, classes, _open=lambda i: upright(root / files[i]))


def labels_by_folder(
    keys: Sequence[str], place: str, empty: Sequence[str] = ()
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Labels and classes of image files by the folders that they lie in; none of both if all lie in no folder.

    Args:
        keys: the files, by their paths with "/".
        place: what holds them, for messages.
        empty: folders that are classes without images.

    Raises:
        ValueError: some files lie in no folder, or two classes have nearly the same name.
    """
    is_loose = ["/" not in key for key in keys]
    if any(is_loose) and not all(is_loose):
        stray = keys[is_loose.index(True)]
        raise ValueError(f"{place} mixes class sub-folders with loose images such as {stray}: move those into a class")
    names = [] if is_loose[0] else [key.partition("/")[0] for key in keys]
    classes = sorted({*names, *empty}) if names else []
    check_spellings(classes, place)
    number = {name: index for index, name in enumerate(classes)}
    return tuple(number[name] for name in names), tuple(classes)


def inner_folder(root: Path, split: str) -> Path:
    """The folder in `root` whose sub-folders are the classes: `root` itself, a split in it, or what it is wrapped in.

    Sub-folders are splits if all that hold images have names that `datasets` takes for splits (train, val,
    test_images), and these tell several splits, or the only one holds class folders. A lone sub-folder without images
    of its own is a wrapper if several folders with images lie in it, or another wrapper.

    Args:
        root: of images.
        split: "train", "validation" or "test", by any name `datasets` has for it, or the exact name of a sub-folder.

    Raises:
        OSError: a folder may not be listed.
        ValueError: there are splits, but this one is not among them, or several are; or other folders lie beside them.
    """
    is_split = False
    while folders := _class_folders(root):
        if not is_split and _are_splits(root, folders):
            root, is_split = root / _chosen(root, folders, split), True
        elif len(folders) == 1 and _is_wrapper(root / folders[0]):
            logger.warning("%s is taken for the image folder: it is all that lies in %s", root / folders[0], root)
            root /= folders[0]
        else:
            break
    return root


def _are_splits(root: Path, folders: list[str]) -> bool:
    """Whether folders are splits; ValueError if only some are."""
    is_nested = any(_class_folders(root / name) for name in folders if split_of(name))
    if all(map(split_of, folders)):
        are_several = len({split_of(name) for name in folders}) > 1 and (is_nested or _bare(folders) == folders)
        return are_several or (len(folders) == 1 and is_nested)
    splits = _bare(folders)
    if is_nested and len({split_of(name) for name in splits}) > 1:
        others = [name for name in folders if name not in splits]
        raise ValueError(
            f"{root} holds the splits {splits} beside {others[:5]}: give the folder of one, such as {root / splits[0]}"
        )
    return False


def split_of(name: str) -> str | None:
    """The split that a name tells of, as `datasets` calls it; None if it tells of none."""
    found = _SPLIT.fullmatch(name)
    return _WORDS[found[1].lower()] if found else None


def _bare(folders: list[str]) -> list[str]:
    """Those that are called like a split and no more."""
    return [name for name in folders if name.lower() in _WORDS]


def _chosen(root: Path, folders: list[str], split: str) -> str:
    """The one of the splits that is asked for."""
    kind = split_of(split)
    found = [name for name in folders if name == split] or [name for name in folders if split_of(name) == kind]
    if not found:
        raise ValueError(
            f"{root} has no split {split!r}; its splits are {folders}: name one of these, or give its folder"
        )
    if len(found) > 1:
        raise ValueError(f"{root} has several folders for the split {split!r}, {found}: name one of these")
    return found[0]


def has_images(root: Path) -> bool:
    """Whether there is an image under a folder; what is raised is told by `Walk`."""
    return any(True for _ in Walk(root))


def _class_folders(root: Path) -> list[str]:
    """Names of sub-folders with images, if none lie beside them; two of them if none is called like a split."""
    if has_loose(root, image_suffixes()):
        return []
    names = sub_folders(root)
    found = (name for name in names if has_images(root / name))
    return list(found if any(map(split_of, names)) else islice(found, 2))


def _is_wrapper(folder: Path) -> bool:
    inner = _class_folders(folder)
    return len(inner) > 1 or (len(inner) == 1 and _is_wrapper(folder / inner[0]))


def _writable(name: str) -> str:
    """The name of a file, with what is not UTF-8 in it escaped."""
    return name.encode("utf-8", "backslashreplace").decode()
