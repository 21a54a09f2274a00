"""Stages of a job that overlap: each works on its own item while the others work on theirs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(function: Callable[[Item], Result], items: Iterable[Item], depth: int) -> Generator[Result, None, None]:
    """Results of `function` over `items`, in order, from a thread that may be up to `depth` items ahead of its reader.

    At most `depth` results wait at a time. Depth 0 is no thread at all, like `map`. An error of the function is raised
    where its result would come. What was handed to the thread is finished in any case, even if the reader stops early.
    """
    if not depth:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(1)
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown()
