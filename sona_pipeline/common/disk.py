"""What a disk refuses, said in a sentence; what outlasts a loss of power; and permissions as the umask has them."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

NAME_BYTES = 255
"""Bytes that the name of a file may have on the file systems of today."""
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
"""Numbers of errors that say that there is no room."""
SYNCS_AT_ONCE = 16
_CANNOT_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES}
"""Numbers of errors by which some network disks say that they sync no folders."""


class DiskFullError(OSError):
    """A file could not be written since there is no room for it.

    Attributes:
        folder: that it would lie in, which the message names.
        what: what the disk does.
    """

    def __init__(self, folder: Path, what: str):
        super().__init__(f"the disk of {folder} {what}")
        self.folder, self.what = folder, what

    def __reduce__(self) -> tuple:  # to other processes
        return DiskFullError, (self.folder, self.what)


@contextmanager
def disk_explained(folder: Path) -> Iterator[None]:
    """Make errors of writing to `folder` such that say what is wrong.

    Raises:
        DiskFullError: there is no room.
        PermissionError: the folder may not be written to.
        OSError: what else is wrong with the disk.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = _number(error)
        if number is None or isinstance(error, DiskFullError):
            raise
        place = _place(error, folder)
        if number in FULL:
            what = "takes no file of that size" if number == errno.EFBIG else "is full"
            raise DiskFullError(place, what) from error
        if number in (errno.EACCES, errno.EPERM, errno.EROFS) and place == folder:
            raise PermissionError(f"{folder} may not be written to: choose another folder") from error
        if isinstance(error, OSError):
            raise
        raise OSError(number, os.strerror(number), str(folder)) from error


def _number(error: OSError | SafetensorError) -> int | None:
    """The number of an error, which safetensors gives in words."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"os error (\d+)", str(error))
    return int(found[1]) if found else None


def _place(error: OSError | SafetensorError, folder: Path) -> Path:
    """Where an error is from: `folder`, unless it names a file that lies elsewhere."""
    if not isinstance(getattr(error, "filename", None), (str, bytes, Path)):
        return folder
    file = Path(os.fsdecode(error.filename))  # type: ignore[union-attr] # which has just been looked at
    return folder if file.is_relative_to(folder) or folder.is_relative_to(file) else file.parent


def check_readable(*paths: Path) -> None:
    """Raise PermissionError for the first file or folder that is there and may not be read."""
    for path in paths:
        needed = os.R_OK | (os.X_OK if path.is_dir() else 0)
        if path.exists() and not os.access(path, needed):
            raise PermissionError(f"{path} may not be read by this account: ask its owner for the right")


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, as far as they are not there; they outlast a loss of power.

    Raises:
        NotADirectoryError: there is a file in its place.
        DiskFullError, OSError: see `disk_explained`.
    """
    try:
        with disk_explained(folder):
            missing = [one for one in (folder, *folder.parents) if not one.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            for one in missing:
                sync(one.parent)
    except (FileExistsError, NotADirectoryError) as error:
        raise NotADirectoryError(f"{folder} cannot be a folder, since a file is there: choose another") from error


def sync(path: Path) -> None:
    """Bring the content of a file, or the names in a folder, to the disk, where a loss of power leaves them."""
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":  # which syncs no folders
        return
    descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not is_folder or error.errno not in _CANNOT_SYNC:
            raise
    finally:
        os.close(descriptor)


def sync_all(paths: Sequence[Path]) -> None:
    """`sync` many at once: a disk that is asked by several threads takes a fraction of the time for each."""
    if len(paths) > 1:
        with ThreadPoolExecutor(min(len(paths), SYNCS_AT_ONCE)) as pool:
            list(pool.map(sync, paths))
    else:
        list(map(sync, paths))


def loosen(path: Path) -> None:
    """Give a new file the permissions that the umask leaves, if its writer was stricter."""
    mode = path.stat().st_mode & 0o777
    if mode & 0o044 != 0o044 and mode != (wanted := mode | 0o666 & ~_umask()):
        with suppress(OSError):  # some disks have no permissions
            path.chmod(wanted)


def _umask() -> int:
    """The umask; where that can be read, it is not changed to be known, since other threads may write, too."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("Umask:"):
                return int(line.split()[1], 8)
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
