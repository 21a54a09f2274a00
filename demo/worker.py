"""The one thread that models run in."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Worker(ThreadPoolExecutor):
    """One thread for all that torch does: on a CPU, a second one with torch in it slows the first down.

    Attributes:
        is_ending: whether it is shut down; what it is at then has to come to an end.
    """

    def __init__(self) -> None:
        super().__init__(1)
        self.is_ending = False
        self._undone: set[Future] = set()

    def submit(self, fn: Callable, /, *args: Any, **kwargs: Any) -> Future:
        """Have a function called in the thread, after all that was submitted before."""
        future = super().submit(fn, *args, **kwargs)
        self._undone.add(future)
        future.add_done_callback(self._undone.discard)
        return future

    @property
    def is_waited_for(self) -> bool:
        """Whether anything waits for what the thread is at."""
        return len(self._undone) > 1

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End what the thread is at, as far as it asks `is_ending`, and take nothing more."""
        self.is_ending = True
        super().shutdown(wait, cancel_futures=cancel_futures)
