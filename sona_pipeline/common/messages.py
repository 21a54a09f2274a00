"""What the commands print on, and how they say things."""

from __future__ import annotations

import sys
import textwrap
from typing import TextIO

from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

console = Console()
WIDEST = 100_000
"""Columns that a table may have where no screen bounds it."""


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


def brief(error: BaseException) -> str:
    """What an error of another library says, on one line of at most 300 characters; its name if it says nothing."""
    return textwrap.shorten(str(error), 300, placeholder=" ...") or type(error).__name__


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
