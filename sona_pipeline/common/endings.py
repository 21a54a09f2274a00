"""How a command ends that does not come to its end."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from sona_pipeline.common.messages import say_failure


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
