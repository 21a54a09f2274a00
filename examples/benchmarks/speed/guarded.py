"""Parts of a benchmark in processes of their own: one that fails, hangs or runs out of memory harms no other."""

import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

PROCESSES = multiprocessing.get_context("spawn")
"""A fork of a process that has seen a GPU could not use it."""
DONE = "done"
SECONDS_TO_END = 5
"""That a process has to clean up when its rows are out."""


@dataclass(frozen=True)
class Part:
    """A part: what gives its rows, by a function that is found by its name in its module, and its share of the time."""

    work: Callable[..., Iterator[dict]]
    seconds: float


def run_parts(
    parts: Mapping[str, Part], arguments: tuple[Any, ...], budget: float
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run parts one after another, each for its share of the `budget` in seconds and for what earlier ones leave.

    Args:
        parts: by name, the most important first.
        arguments: of all of them.
        budget: for all of them.

    Returns:
        Name and record of the part that runs, after each of its rows and at its end: its title, its rows, how it
        `ended` (`DONE`, its error, or that its time was up), and then its `seconds`.
    """
    started, shares = time.monotonic(), sum(part.seconds for part in parts.values())
    for name, part in parts.items():
        begun = time.monotonic()
        record: dict[str, Any] = {"title": part.work.__doc__.splitlines()[0], "ended": "it runs", "rows": []}
        seconds = (budget - (begun - started)) * part.seconds / shares
        shares -= part.seconds
        for row in guarded(part.work, arguments, seconds):
            if isinstance(row, str):
                record |= {"ended": row, "seconds": round(time.monotonic() - begun, 1)}
            else:
                record["rows"].append(row)
            yield name, record


def guarded(work: Callable[..., Iterator[dict]], arguments: tuple[Any, ...], seconds: float) -> Iterator[dict | str]:
    """The rows that `work` gives in a process of its own, and in the end how it ended.

    After so many seconds it is stopped, with all processes that it has started.
    """
    receiver, sender = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=_send_rows, args=(sender, work, arguments))
    process.start()
    sender.close()
    deadline, ended = time.monotonic() + seconds, f"stopped after {seconds:.0f} s, its share of the time"
    try:
        while receiver.poll(max(0.0, deadline - time.monotonic())):
            if isinstance(message := receiver.recv(), str):
                ended = message
                process.join(SECONDS_TO_END)
                break
            yield message
    except EOFError:
        process.join()
        ended = f"its process died with exit code {process.exitcode}"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()
    yield ended


def _send_rows(sender: Connection, work: Callable[..., Iterator[dict]], arguments: tuple[Any, ...]) -> None:
    os.setpgid(0, 0)
    try:
        for row in work(*arguments):
            sender.send(row)
        sender.send(DONE)
    except Exception as error:
        traceback.print_exc()
        sender.send(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")
