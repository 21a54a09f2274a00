"""What the commands print on: the console, and messages for jobs that end early."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

from sona_pipeline.common.disk import FULL, DiskFullError

console = Console()
WIDEST = 100_000
"""Columns that a table may have where no screen bounds it."""
_SHARED_MEMORY = re.compile(r"shared memory|/torch_\d|Bus error", re.IGNORECASE)


def say(*lines: str | Table) -> None:
    """Print lines and tables: lines as long as they are, and tables as wide as they are where no screen bounds them."""
    for line in lines:
        if isinstance(line, str):
            console.print(line, highlight=False, soft_wrap=True)
        elif _is_screen(console.file):
            console.print(line)
        else:
            unbounded = Console(file=console.file, width=WIDEST, quiet=console.quiet)
            unbounded.print(line, width=Measurement.get(unbounded, unbounded.options, line).maximum)


def warning(text: str) -> str:
    """A line that people should see."""
    return f"[yellow]{escape(text)}[/]"


def say_failure(error: Exception) -> None:
    """Print on stderr what is wrong, without the number of an error of the system."""
    sentence = str(error)
    if isinstance(error, PermissionError) and error.filename:
        sentence = f"{error.filename} may not be read, or not be written to, by this account"
    Console(stderr=True).print(f"[bold red]sona:[/] {escape(sentence)}", highlight=False, soft_wrap=True)


def _is_screen(file: object) -> bool:
    isatty = getattr(file, "isatty", None)
    return bool(isatty and isatty())


def print_anything(*streams: TextIO) -> None:
    """Let streams escape the letters that their encoding lacks, instead of raising UnicodeEncodeError."""
    for stream in streams or (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure") and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def has_all_letters(stream: TextIO) -> bool:
    """Whether the encoding of a stream has every letter there is."""
    return (getattr(stream, "encoding", None) or "utf-8").lower().replace("_", "-").startswith("utf")


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
                f"no room for what processes share, or for temporary files ({' '.join(str(error).split())[:200]}): make"
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
