"""How commands end that do not come to their end, and what they say then."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from sona_pipeline.common.disk import FULL, DiskFullError
from sona_pipeline.common.messages import brief, say

_OF_PLACES: dict[int | None, str] = {
    errno.EACCES: "may not be read, or not be written to, by this account",
    errno.EPERM: "may not be read, or not be written to, by this account",
    errno.ENOENT: "does not exist: name another place",
    errno.EISDIR: "is a folder, but a file is needed: name one",
    errno.ENOTDIR: "is a file, or lies below one, but a folder is needed: name another place",
    errno.EEXIST: "is there already, as something else: name another place",
    errno.EROFS: "lies on a disk that may only be read: name another place",
}
"""What is wrong with a place, by the number of the system's error."""
_SHARED_MEMORY = re.compile(r"shared memory|/torch_\d|Bus error", re.IGNORECASE)


def exit_code(error: BaseException, is_stopped: bool, bad_input: type[Exception]) -> int:
    """What a command ends with that did not come to its end; errors that nobody can mend by other input are raised."""
    if is_stopped or isinstance(error, KeyboardInterrupt):  # an import that is broken off may fail in any way
        return 128 + signal.SIGINT
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that nothing is left to be flushed
        return 1
    if isinstance(error, (bad_input, ValueError, OSError, FloatingPointError, MemoryError)):
        say_failure(error)
        return 2
    raise error


def say_failure(error: Exception) -> None:
    """Print on stderr what is wrong, without the number of an error of the system."""
    sentence = str(error)
    if isinstance(error, OSError) and error.filename:
        sentence = f"{error.filename} {_OF_PLACES.get(error.errno, f'fails ({error.strerror})')}"
    Console(stderr=True).print(f"[bold red]sona:[/] {escape(sentence)}", highlight=False, soft_wrap=True)


@contextmanager
def ctrl_c_noted() -> Iterator[list[int]]:
    """A list that gets an entry whenever Ctrl-C is pressed; that raises KeyboardInterrupt as ever."""
    pressed: list[int] = []

    def stop(number: int, _: object) -> None:
        pressed.append(number)
        raise KeyboardInterrupt

    earlier = signal.getsignal(signal.SIGINT)
    if earlier is not signal.default_int_handler:  # it is ignored, or others see to it
        yield pressed
        return
    signal.signal(signal.SIGINT, stop)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, earlier)


@contextmanager
def ends_explained(output: Path, batch_size: int) -> Iterator[None]:
    """Say what to do when a job that can be resumed is stopped, or runs out of disk or memory.

    Args:
        output: folder that the job writes to.
        batch_size: images in a batch.

    Raises:
        KeyboardInterrupt: the job was stopped.
        MemoryError: a batch was too large for the device.
        OSError: a disk is full, or the memory that processes share; or what else the job raised.
    """
    import torch

    try:
        yield
    except KeyboardInterrupt:
        say("\nStopped. What is done is kept; the same command goes on from there.")
        raise
    except torch.OutOfMemoryError:
        raise MemoryError(f"no memory for batches of {batch_size} images: lower --batch-size") from None
    except DiskFullError as error:
        folder = output if error.folder.is_relative_to(output) else error.folder
        raise OSError(f"the disk of {folder} {error.what}; what is done is kept: make room, and go on") from error
    except (OSError, RuntimeError) as error:
        if _SHARED_MEMORY.search(str(error)) or getattr(error, "errno", None) in FULL:
            raise OSError(
                f"no room for what processes share, or for temporary files ({brief(error)}): make"
                " /dev/shm larger, or use --workers 0; what is done is kept"
            ) from error
        raise


@contextmanager
def stopped_explained() -> Iterator[None]:
    """Say what is left when a job that leaves nothing is stopped by Ctrl-C or SIGTERM, which end it alike."""
    earlier = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        say("\nStopped. Nothing is left of it on this disk; the same command begins anew.")
        raise
    finally:
        signal.signal(signal.SIGTERM, earlier)
