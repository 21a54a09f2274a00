"""The command line `sona`: its commands, and how it ends."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from cyclopts import App, CycloptsError

from sona_pipeline import __version__
from sona_pipeline.cli import detectors, hub, outliers
from sona_pipeline.common.messages import print_anything, say_failure

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
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    print_anything()
    with _ctrl_c_noted() as pressed:
        try:
            app(sys.argv[1:] if arguments is None else arguments)
            sys.stdout.flush()
        except (Exception, KeyboardInterrupt) as error:
            sys.exit(_exit_code(error, bool(pressed)))


def _exit_code(error: BaseException, is_stopped: bool) -> int:
    """What a command ends with that did not come to its end; errors that nobody can mend by other input are raised."""
    if is_stopped or isinstance(error, KeyboardInterrupt):  # an import that is broken off may fail in any way
        return 128 + signal.SIGINT
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that nothing is left to be flushed
        return 1
    if isinstance(error, (CycloptsError, ValueError, OSError, FloatingPointError, MemoryError)):
        say_failure(error)
        return 2
    raise error


@contextmanager
def _ctrl_c_noted() -> Iterator[list[int]]:
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
