"""Places that are addresses, such as s3://bucket/folder: storage that fsspec reads and writes."""

from __future__ import annotations

import errno
import functools
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sona_pipeline.common.messages import brief

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
"""Extras of this package that bring what a protocol needs."""
_DENIED = re.compile(
    r"credential|token|forbidden|denied|unauthorized|invalidaccesskey|signature|gated|\b40[13]\b", re.I
)
_MISSING = re.compile(r"nosuch|not ?found|does not exist|\b404\b", re.IGNORECASE)


def address_of(place: str | Path) -> str | None:
    """The address that a place is, without a slash at its end; None for a path of this machine, as file:// is too.

    A `Path` of an address has lost one of its slashes.
    """
    found = re.fullmatch(r"(?!file:)([a-zA-Z][a-zA-Z0-9+.-]+):/{1,2}([^/].*?)/*", os.fspath(place))
    return f"{found[1]}://{found[2]}" if found else None


def storage_of(folder: Path) -> Storage:
    """A folder of this machine as storage."""
    return Storage(f"file://{folder.absolute().as_posix()}")


class UnreachableError(OSError):
    """An address cannot be reached now, which is no fault of what lies there: its number is that of such errors."""

    errno = errno.EHOSTUNREACH


@dataclass(frozen=True)
class Storage:
    """A folder, or a file, at an address.

    Files are named by their paths from there on; an empty name is the address itself.
    """

    address: str

    @property
    def files(self) -> AbstractFileSystem:
        """What reads and writes there; one for each process, since connections do not outlive a fork."""
        return _file_system(self.address.partition("://")[0].lower(), os.getpid())

    def inside(self, name: str) -> Storage:
        """A folder in it."""
        return Storage(f"{self.address.rstrip('/')}/{name}")

    def place(self, name: str) -> str:
        """What the file system calls a file."""
        root = self.files._strip_protocol(self.address)
        return f"{root.rstrip('/')}/{name}" if name else root

    def listing(self) -> dict[str, int]:
        """The files at the address by name, sorted, with their sizes in bytes; {"": size} if it is one file.

        Raises:
            FileNotFoundError, PermissionError, ValueError, OSError: see `reached`.
        """
        with reached(self.address):
            self.files.invalidate_cache()
            if "*" in self.address:
                return self._globbed()
            if self.files.isfile(self.place("")):
                return {"": self.files.size(self.place(""))}
            root = self.place("").rstrip("/") + "/"
            found = self.files.find(self.place(""), detail=True)
            if not found and not self.files.exists(self.place("")):
                raise FileNotFoundError(self.address)
            return {name.removeprefix(root): entry["size"] for name, entry in sorted(found.items())}

    def _globbed(self) -> dict[str, int]:
        root = self.place("").partition("*")[0].rpartition("/")[0] + "/"
        found = self.files.glob(self.place(""), detail=True)
        if not found:
            raise FileNotFoundError(self.address)
        return {name.removeprefix(root): entry["size"] for name, entry in sorted(found.items())}

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        """The content of a file, or the bytes `start` to `end` of it; what is raised is told by `reached`."""
        with reached(f"{self.address}/{name}"):
            return self.files.cat_file(self.place(name), start=start, end=end)

    def read_if_there(self, name: str) -> bytes | None:
        """The content of a file, or None if it is not there; for other errors see `reached`."""
        try:
            return self.read(name)
        except FileNotFoundError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Write a file; what is raised is told by `reached`."""
        with reached(f"{self.address}/{name}"):
            self.files.pipe_file(self.place(name), content)

    def remove(self, name: str) -> None:
        """Take a file away, if it is there; what is raised is told by `reached`."""
        with reached(f"{self.address}/{name}"), suppress(FileNotFoundError):
            self.files.rm_file(self.place(name))

    def upload(self, path: Path, name: str) -> None:
        """Bring a file of this machine there; what is raised is told by `reached`."""
        with reached(f"{self.address}/{name}"):
            self.files.put_file(str(path), self.place(name))

    def download(self, name: str, path: Path) -> None:
        """Bring a file to this machine; what is raised is told by `reached`."""
        with reached(f"{self.address}/{name}"):
            self.files.get_file(self.place(name), str(path))


@functools.cache
def _file_system(protocol: str, process: int) -> AbstractFileSystem:
    import fsspec

    return fsspec.filesystem(protocol, skip_instance_cache=True, use_listings_cache=False)


def under(address: str) -> tuple[Storage, str]:
    """The storage that names from a listing of the address start from, and what to call it."""
    root = address.partition("*")[0].rpartition("/")[0] if "*" in address else address.rstrip("/")
    return Storage(root), address


@contextmanager
def reached(address: str) -> Iterator[None]:
    """Make errors of storage such that say in a sentence what is wrong with an address.

    Raises:
        ValueError: there is no such protocol, or what it needs is not installed.
        FileNotFoundError: nothing is there, such as a bucket that there is not.
        PermissionError: it takes credentials that are missing or wrong.
        UnreachableError: it cannot be reached.
    """
    try:
        yield
    except Exception as error:
        raise _explained(address, error) from error


def _explained(address: str, error: Exception) -> Exception:
    protocol = address.partition("://")[0].lower()
    text = f"{type(error).__name__} {error}"
    if isinstance(error, ImportError):
        extra = EXTRAS.get(protocol)
        way_out = f'pip install "sona-pipeline[{extra}]"' if extra else f"install it ({brief(error)})"
        return ValueError(f"{address} needs a package for {protocol}:// that is missing: {way_out}")
    if isinstance(error, ValueError) and "rotocol not known" in text:
        return ValueError(f"{address} has the protocol {protocol!r}, which is not known: give s3://, gs:// or hf://")
    if isinstance(error, FileNotFoundError) or _MISSING.search(text):
        return FileNotFoundError(f"{address} does not exist: check bucket and path ({brief(error)})")
    if isinstance(error, PermissionError) or _DENIED.search(text):
        return PermissionError(
            f"{address} takes credentials that are missing or have no right to it: give them as its tools do"
            f" ({brief(error)})"
        )
    return UnreachableError(f"{address} cannot be reached ({brief(error)}): check the address and the network")
