"""Image folders: which files in them are images, and which sub-folders classes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from sona_pipeline.data.image_set import ImageSet
from sona_pipeline.data.imaging import image_suffixes, upright


def open_folder(root: Path) -> ImageSet:
    """Open an image folder, whose sub-folders are the classes; what is raised is told by `open_images`."""
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


def _writable(name: str) -> str:
    """The name of a file, with what is not UTF-8 in it escaped."""
    return name.encode("utf-8", "backslashreplace").decode()
