"""Progress bars of the jobs."""

from __future__ import annotations

import time

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

SECONDS_BETWEEN_LINES = 60
"""How often a log that is no terminal gets a line."""


class Track:
    """A progress bar with speed, time spent and time left; a context manager. Logs get a line a minute instead.

    Args:
        title: what is counted.
        total: when it is done.
        shown: False shows nothing.
    """

    def __init__(self, title: str, total: int, *, shown: bool = True):
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Speed(""),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            speed_estimate_period=300,
            disable=not shown,
        )
        self._task = self._progress.add_task(self._printable(title), total=total)
        self._logged = time.monotonic()

    def __enter__(self) -> Track:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self, count: int = 1) -> None:
        """Count `count` more as done."""
        self._progress.advance(self._task, count)
        self._log()

    def reach(self, count: int) -> None:
        """Count `count` in all as done."""
        self._progress.update(self._task, completed=count)
        self._log()

    def say(self, title: str) -> None:
        """Change what the bar says."""
        self._progress.update(self._task, description=self._printable(title))

    def _printable(self, title: str) -> str:
        """The title in letters that the encoding of the console has."""
        encoding = self._progress.console.encoding
        return title.encode(encoding, "backslashreplace").decode(encoding)

    def _log(self) -> None:
        console = self._progress.console
        is_log = not self._progress.disable and not console.is_terminal
        if is_log and time.monotonic() - self._logged >= SECONDS_BETWEEN_LINES:
            self._logged = time.monotonic()
            console.print(self._progress.get_renderable())


class _Speed(TextColumn):
    def render(self, task: Task) -> Text:
        self.text_format = f"{task.speed:.3g}/s" if task.speed else ""
        return super().render(task)
