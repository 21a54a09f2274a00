"""The images under a folder: each file once, whatever links lead to it, and what else lies there."""

from __future__ import annotations

import errno
import heapq
import logging
import os
from collections import Counter
from collections.abc import Iterator, Set
from pathlib import Path

from sona_pipeline.data.imaging import image_suffixes
from sona_pipeline.data.strewn import is_strewn

logger = logging.getLogger(__name__)

ARCHIVES = frozenset({".zip", ".tar", ".tgz", ".tbz2", ".txz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar"})
"""Suffixes of archives and compressed files."""


class Walk:
    """A walk over the image files under a folder, or over those with other `suffixes`.

    Iterated, it gives their paths relative to the folder and with slashes. What is hidden or strewn about by systems is
    left out. A file or folder that links lead to as well counts once: where it lies, else under the first link by name.

    Attributes:
        passed_over: number of files that are no images by their suffix, by that suffix in lower case.
        again: links to what counts elsewhere, or to a folder around the link; complete after the walk.

    Raises:
        OSError: a folder may not or cannot be listed, or a link leads nowhere; it is named.
    """

    def __init__(self, root: Path, suffixes: Set[str] | None = None):
        self.root = root
        self.passed_over: Counter[str] = Counter()
        self.again: list[str] = []
        self._suffixes = image_suffixes() if suffixes is None else suffixes

    def __iter__(self) -> Iterator[str]:
        real_root = os.path.realpath(self.root)
        folders, links, linked = [("", real_root)], list[tuple[str, str]](), list[tuple[str, str]]()
        seen: set[str] = set()
        while folders or links:
            is_linked = not folders
            place, real = heapq.heappop(links) if is_linked else folders.pop()
            if real in seen or (is_linked and _leads_up(real, self.root / place, real_root)):
                self.again.append(place.rstrip("/"))
                continue
            seen.add(real)
            for entry in _entries(self.root / place):
                name = place + entry.name
                if entry.is_symlink() and self._is_linked_folder(entry):
                    heapq.heappush(links, (f"{name}/", os.path.realpath(entry.path)))
                elif entry.is_dir(follow_symlinks=False):
                    folders.append((f"{name}/", os.path.join(real, entry.name)))
                elif not self._is_wanted(name):
                    self.passed_over[_suffix(name)] += 1
                elif entry.is_symlink():
                    linked.append((name, os.path.realpath(entry.path)))
                else:
                    yield name
        yield from self._linked_files(sorted(linked), seen)

    def _linked_files(self, linked: list[tuple[str, str]], seen: set[str]) -> Iterator[str]:
        for name, real in linked:
            folder, file = os.path.split(real)
            lies_there = folder in seen and self._is_wanted(file) and not is_strewn(file) and os.path.exists(real)
            if real in seen or lies_there:
                self.again.append(name)
            else:
                seen.add(real)
                yield name

    def _is_wanted(self, name: str) -> bool:
        return _suffix(name) in self._suffixes

    def _is_linked_folder(self, link: os.DirEntry[str]) -> bool:
        """Whether a link leads to a folder; one that leads nowhere may be an image's, which is missed later."""
        try:
            return os.path.isdir(link.path) or (_suffix(link.name) not in image_suffixes() and not os.stat(link.path))
        except OSError as error:
            target = os.readlink(link.path)
            raise type(error)(
                f"{link.path} is a link to {target}, which cannot be reached ({error.strerror}): mount what it leads"
                " to, or take the link away"
            ) from error

    def report(self) -> None:
        """Log what was passed over, in a line a kind."""
        if self.passed_over:
            logger.warning("%s: passed over %s without the suffix of an image (%s)", self.root, *self._others())
        if len(self.again) == 1:
            logger.warning("%s: passed over a link to what counts already: %s", self.root, self.again[0])
        elif self.again:
            count, first = len(self.again), min(self.again)
            logger.warning("%s: passed over %d links to what counts already, such as %s", self.root, count, first)

    def _others(self) -> tuple[str, str]:
        """The number of files that are no images by their suffix: of all, and of each suffix."""
        total = self.passed_over.total()
        counts = sorted(self.passed_over.items(), key=lambda item: (-item[1], item[0]))
        return f"{total} file{'s' if total > 1 else ''}", ", ".join(
            f"{n} {suffix or 'without'}" for suffix, n in counts
        )

    def nothing_found(self) -> str:
        """Why a complete walk found nothing, and what to do, in a sentence."""
        if not self.passed_over:
            return f"no images under {self.root}: expected files such as {self.root}/<class>/<name>.png"
        if ARCHIVES & set(self.passed_over):
            way_out = "unpack the archives"
        else:
            way_out = "convert images to PNG or JPEG, with a suffix that says so"
        files, counts = self._others()
        return f"no images under {self.root}, only {files} without the suffix of an image ({counts}): {way_out}"


def check_no_archive(path: Path) -> None:
    """Raise ValueError if a file is an archive or compressed by its suffix."""
    if _suffix(path.name) in ARCHIVES:
        raise ValueError(f"{path} is an archive: unpack it, and give the folder")


def sub_folders(root: Path) -> list[str]:
    """Names of the folders in `root`, links to folders among them, sorted; without what is hidden or strewn about."""
    return sorted(entry.name for entry in _entries(root) if _is_folder(entry))


def has_loose(root: Path, suffixes: Set[str]) -> bool:
    """Whether a file with one of the suffixes lies in `root` itself."""
    return any(_suffix(e.name) in suffixes and not _is_folder(e) for e in _entries(root))


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, but for what is hidden or strewn about."""
    try:
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if not is_strewn(entry.name)]
        if found and not os.access(folder, os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise type(error)(
            f"the folder {folder} cannot be listed ({error.strerror}): allow it, or move it out of the images"
        ) from error
    return found


def _leads_up(real: str, link: Path, root: str) -> bool:
    """Whether a folder that a link leads to is around the link itself or around the root."""
    above = os.path.realpath(link.parent)
    return any(Path(inner).is_relative_to(real) for inner in (above, root))
