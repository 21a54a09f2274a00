"""What the commands print on: the console, and messages for jobs that end early."""

from __future__ import annotations

import errno
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

console = Console()


@contextmanager
def ends_explained(output: Path, batch_size: int) -> Iterator[None]:
    """Say what to do when a job that can be resumed is stopped, or runs out of disk or memory.

    Args:
        output: folder that the job writes to.
        batch_size: images in a batch.

    Raises:
        KeyboardInterrupt: the job was stopped.
        MemoryError: a batch was too large for the device.
        OSError: the disk is full, or what else the job raised.
    """
    import torch

    try:
        yield
    except KeyboardInterrupt:
        console.print("\nStopped. What is done is kept; the same command goes on from there.")
        raise
    except torch.OutOfMemoryError:
        raise MemoryError(f"no memory for batches of {batch_size} images: lower --batch-size") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(f"the disk of {output} is full; what is done is kept: make room, and go on") from error
        raise


@contextmanager
def stopped_explained() -> Iterator[None]:
    """Say what is left when a job that leaves nothing is stopped by Ctrl-C or SIGTERM, which end it alike."""
    earlier = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        console.print("\nStopped. Nothing is left of it on this disk; the same command begins anew.")
        raise
    finally:
        signal.signal(signal.SIGTERM, earlier)
