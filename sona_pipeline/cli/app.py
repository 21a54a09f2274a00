"""The command line `sona`: its commands, and how it ends."""

from __future__ import annotations

import os
import signal
import sys

from cyclopts import App, CycloptsError
from rich.console import Console
from rich.markup import escape

from sona_pipeline import __version__
from sona_pipeline.cli import detectors, hub, outliers

app = App(
    name="sona",
    help="Semantic outliers from your own labelled images, and detectors trained on them.",
    version=f"sona {__version__}",
    version_flags="--version",
    help_format="markdown",
    print_error=False,
    exit_on_error=False,
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
for group in (outliers, detectors, hub):
    group.add_to(app)
app.register_install_completion_command()


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; bad input ends with a message and exit code 2, Ctrl-C with exit code 130."""
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    try:
        app(sys.argv[1:] if arguments is None else arguments)
    except (CycloptsError, ValueError, OSError, FloatingPointError, MemoryError) as error:
        Console(stderr=True).print(f"[bold red]sona:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
