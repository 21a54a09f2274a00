"""Files that appear whole or not at all, tables of JSON lines, and what a job needs to be resumed."""

from __future__ import annotations

import codecs
import hashlib
import io
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from sona_pipeline.common.disk import NAME_BYTES, DiskFullError, disk_explained, loosen, make_folder, sync_all

if TYPE_CHECKING:
    from PIL import Image

logger = logging.getLogger(__name__)


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Keep other runs out of `folder` while the context lasts; the lock ends with the process, however that ends.

    On a disk that has no locks, as some network disks, this says so in the log and keeps nobody out.

    Raises:
        BlockingIOError: another run is in the folder.
        OSError: the folder cannot be made, or not be written to.
    """
    make_folder(folder)
    lock = FileLock(folder / ".lock")
    try:
        with disk_explained(folder):
            lock.acquire(timeout=0)
    except (Timeout, OSError, NotImplementedError) as error:
        if isinstance(error, (DiskFullError, PermissionError)):
            raise
        if not isinstance(error, Timeout) or _lacks_locks(folder):
            logger.warning("the disk of %s has no file locks: see to it that no other run writes there", folder)
        else:
            raise BlockingIOError(
                f"another run is writing to {folder}: wait for its end, or choose another folder"
            ) from None
    try:
        yield
    finally:
        lock.release()


def _lacks_locks(folder: Path) -> bool:
    """Whether locking fails on any file of the folder; older versions of filelock take that for another run."""
    try:
        import fcntl

        with tempfile.TemporaryFile(dir=folder) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        return False
    except OSError:
        return True
    return False


def settle_settings(path: Path, settings: dict, notes: dict | None = None, then: dict | None = None) -> None:
    """Write the settings of a job, or check that an earlier run into the same folder had the very same.

    Args:
        path: of the JSON file.
        settings: what has to be equal.
        notes: what is written beside the settings under "notes" and may change.
        then: settings that earlier versions did not record, as they had them.

    Raises:
        ValueError: they differ; the message says in what.
    """
    settings = json.loads(json.dumps(settings))
    if path.exists():
        earlier = (then or {}) | read_json(path)
        earlier.pop("notes", None)
        if changed := [key for key in sorted(settings | earlier) if settings.get(key) != earlier.get(key)]:
            pairs = ((key, _short(earlier.get(key)), _short(settings.get(key))) for key in changed)
            what = ", ".join(f"{key} ({then} then, {now} now)" for key, then, now in pairs)
            raise ValueError(f"{path.parent} was made with other settings: {what}; choose another folder")
        return
    written = settings | ({"notes": notes} if notes else {})
    write_text(path, json.dumps(written, indent=2, ensure_ascii=False) + "\n")


def versions() -> dict[str, str]:
    """Versions of this package and of those that results depend on, for notes beside settings."""
    return {name: version(name) for name in ("sona-pipeline", "diffusers", "torch", "transformers", "pillow")}


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}... of {len(text)} characters"


def read_text(path: str | Path) -> str:
    """The content of a text file that somebody gave, in UTF-8, or in UTF-16 if it begins with the mark of that.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is in another encoding, or no text at all.
    """
    path = Path(path)
    with path.open("rb") as file:
        head = file.read(4096)
    is_utf16 = head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and not head.startswith(codecs.BOM_UTF32_LE)
    try:
        if b"\0" in head and not is_utf16:
            raise UnicodeError
        return path.read_text(encoding="utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeError:
        raise ValueError(f"{path} is no text in UTF-8: save it as UTF-8, or give the text file that is meant") from None


def read_json(path: str | Path) -> Any:
    """The content of a JSON file; OSError and ValueError as from `read_text`, ValueError also if it is no JSON."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    write_bytes(path, text.encode())


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write a text file whole or not at all, a line at a time."""

    def write(partial: Path) -> None:
        with partial.open("w", encoding="utf-8", newline="") as file:
            file.writelines(lines)

    write_with(path, write)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    write_with(path, lambda partial: partial.write_bytes(content))


def write_with(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` write a file at the place it is given, which becomes `path` when that is done."""
    write_together({path: write})


def write_together(files: Mapping[Path, Callable[[Path], object]]) -> None:
    """Write files, each by its function at the place it is given; each becomes its path when all are done.

    On return they are on the disk, where a loss of power leaves them. Of many files that takes less time together.
    """
    partials = {path: _partial(path) for path in files}
    folders = list(dict.fromkeys(path.parent for path in files))
    for folder in folders:
        make_folder(folder)
    try:
        for path, write in files.items():
            with disk_explained(path.parent):
                write(partials[path])
                loosen(partials[path])
        with disk_explained(folders[0] if folders else Path()):
            sync_all(list(partials.values()))
            for path, partial in partials.items():
                os.replace(partial, path)
            sync_all(folders)
    finally:
        for partial in partials.values():
            partial.unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    """Where a file lies while it is written."""
    partial = path.with_name(f".{path.name}.partial")
    if len(os.fsencode(partial.name)) > NAME_BYTES:
        return path.with_name(f".{digest(os.fsencode(path.name))}.partial")
    return partial


def remove(*paths: Path) -> None:
    """Take files away, as far as they are there; a loss of power brings none of them back."""
    for path in paths:
        path.unlink(missing_ok=True)
    sync_all([folder for folder in dict.fromkeys(path.parent for path in paths) if folder.exists()])


def png(image: Image.Image) -> bytes:
    """The image as a PNG file."""
    content = io.BytesIO()
    image.save(content, format="PNG")
    return content.getvalue()


def digest(content: bytes) -> str:
    """SHA-256 in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def digest_of_file(path: Path) -> str:
    """SHA-256 of the content of a file, in hexadecimal digits."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def digest_of(content: object) -> str:
    """The first 16 digits of the SHA-256 of something that can be written as JSON."""
    return digest(json.dumps(content, sort_keys=True).encode())[:16]


def json_lines(rows: Iterable[dict]) -> str:
    """A table as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_json_lines(path: Path) -> Iterator[dict]:
    """The rows of a table of JSON lines; none if the file is not there."""
    if path.exists():
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                try:
                    yield json.loads(line)
                except json.JSONDecodeError as error:
                    raise ValueError(f"line {number} of {path} is no JSON: {error}") from None
