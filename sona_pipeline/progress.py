"""Progress bars of the jobs."""

from __future__ import annotations

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Track:
    """A progress bar with time spent and time left; a context manager."""

    def __init__(self, title: str, total: int):
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._task = self._progress.add_task(title, total=total)

    def __enter__(self) -> Track:
        self._progress.start()
        return self

    def __exit__(self, *_) -> None:
        self._progress.stop()

    def advance(self, count: int = 1) -> None:
        """Count `count` more as done."""
        self._progress.advance(self._task, count)
