"""A disk that loses its power: what a program does to a folder is recorded, and what a loss would leave is laid out.

    with Recorder(folder) as disk:
        write(folder)
    for moment in range(len(disk.log) + 1):
        disk.after_loss(moment, random.Random(moment), other_folder)

Only what was synced is sure to be there: the content of a file since its own sync, and a name in a folder, or that one
is gone, since the sync of that folder. Of all else each may have come to the disk or not, in any order, and a file
whose content was not synced may be empty or cut short.
"""

import os
import random
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import pytest


class Names(NamedTuple):
    """Names that a folder gets, with what they are names of, or loses (None); all of them at once or none."""

    folder: int
    changed: dict[str, int | None]


class Sync(NamedTuple):
    """The names in a folder, or the content of a file, came to the disk."""

    what: int


class Recorder:
    """A record of what happens to the folder `root` while the context lasts.

    Attributes:
        log: the changes and syncs, in their order.
    """

    _active: "Recorder | None" = None
    _is_listening = False

    def __init__(self, root: Path):
        self.root, self.log = root, list[Names | Sync]()
        self.folders = {root: 0}
        self._files: dict[int, int] = {}
        self._contents: list[bytes | None] = [None]
        self._patch, self._lock = pytest.MonkeyPatch(), threading.Lock()

    def __enter__(self) -> "Recorder":
        if not Recorder._is_listening:
            sys.addaudithook(_heard)
            Recorder._is_listening = True
        Recorder._active = self
        self._patch.setattr(os, "fsync", self._synced)
        return self

    def __exit__(self, *_) -> None:
        Recorder._active = None
        self._patch.undo()

    def happens(self, event: str, arguments: tuple) -> None:
        """Record what is about to happen, as the audit events of Python tell it."""
        path = Path(os.fsdecode(arguments[0]))
        if not path.is_relative_to(self.root):
            return
        if event == "os.mkdir" and path.parent.exists() and not path.exists():
            self.folders[path] = self._new(None)
            self.log.append(Names(self.folders[path.parent], {path.name: self.folders[path]}))
        elif event in ("os.remove", "os.rmdir") and os.path.lexists(path):
            self._forget(path)
            self.log.append(Names(self.folders[path.parent], {path.name: None}))
        elif event == "os.rename":
            target = Path(os.fsdecode(arguments[1]))
            assert path.parent == target.parent
            number = self._id(path)
            self._forget(target)
            if path in self.folders:
                self.folders[target] = self.folders.pop(path)
            self.log.append(Names(self.folders[target.parent], {path.name: None, target.name: number}))

    def _new(self, content: bytes | None) -> int:
        self._contents.append(content)
        return len(self._contents) - 1

    def _id(self, path: Path) -> int:
        """A number of its own for each file and folder that ever was, whatever it is called."""
        if path in self.folders:
            return self.folders[path]
        place = os.stat(path).st_ino
        if place not in self._files:
            self._files[place] = self._new(path.read_bytes())
        return self._files[place]

    def _forget(self, path: Path) -> None:
        """A file or folder goes away, and another may get its path, or its place on the disk."""
        self.folders.pop(path, None)
        if os.path.lexists(path):
            self._files.pop(os.stat(path).st_ino, None)

    def _synced(self, descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        with self._lock:  # files are synced by several threads
            if path.is_relative_to(self.root):
                number = self._id(path)
                if path.is_file():
                    self._contents[number] = path.read_bytes()
                self.log.append(Sync(number))

    def is_file(self, number: int) -> bool:
        """Whether a number is that of a file and not of a folder."""
        return self._contents[number] is not None

    def after_loss(self, moment: int, chance: random.Random, place: Path) -> None:
        """Lay out in the folder `place` what may be left when the power is lost after `moment` entries of the log."""
        past = self.log[:moment]
        synced = {entry.what for entry in past if isinstance(entry, Sync)}
        last_sync = {entry.what: k for k, entry in enumerate(past) if isinstance(entry, Sync)}
        share = chance.choice([0.0, 0.5, 1.0])
        names: dict[int, dict[str, int]] = {}
        for k, entry in enumerate(past):
            if isinstance(entry, Names) and (k < last_sync.get(entry.folder, -1) or chance.random() < share):
                inside = names.setdefault(entry.folder, {})
                for name, number in entry.changed.items():
                    inside.pop(name, None)
                    if number is not None:
                        inside[name] = number
        self._lay_out(0, names, synced, chance, place)

    def _lay_out(self, folder: int, names: dict, synced: set[int], chance: random.Random, place: Path) -> None:
        place.mkdir(exist_ok=True)
        for name, number in names.get(folder, {}).items():
            content = self._contents[number]
            if content is None:
                self._lay_out(number, names, synced, chance, place / name)
            else:
                kept = len(content) if number in synced else chance.choice([0, len(content) // 2])
                (place / name).write_bytes(content[:kept])


def _heard(event: str, arguments: tuple) -> None:
    if Recorder._active and event.startswith("os."):
        Recorder._active.happens(event, arguments)
