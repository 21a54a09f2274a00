"""The command line `sona`: its commands, and how it ends."""

from __future__ import annotations

import os
import sys

from cyclopts import App, CycloptsError

from sona_pipeline import __version__
from sona_pipeline.cli import detectors, fit, hub, outliers
from sona_pipeline.common.endings import ctrl_c_noted, exit_code
from sona_pipeline.common.messages import print_anything

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
for group in (fit, outliers, detectors, hub):
    group.add_to(app)
app.register_install_completion_command()


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; bad input ends with a message and exit code 2, Ctrl-C with exit code 130."""
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    print_anything()
    with ctrl_c_noted() as pressed:
        try:
            app(sys.argv[1:] if arguments is None else arguments)
            sys.stdout.flush()
        except (Exception, KeyboardInterrupt) as error:
            sys.exit(exit_code(error, bool(pressed), bad_input=CycloptsError))
