"""`sona` in processes of its own without the seconds of its imports: forked from a server that has them already."""

import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["sona_pipeline.cli.app", "sona_pipeline.generation.generate", "sona_pipeline.training.train"]
)


class Run:
    """A `sona` command that runs, to be killed, stopped or waited for.

    Args:
        arguments: its words, without the name.
        threads: of torch.
        environment: variables that are added.
        prepare: what is done in the process before.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        threads: int = 1,
        environment: Mapping[str, str] | None = None,
        prepare: Callable[[], None] | None = None,
    ):
        self._output, self._errors = (Path(tempfile.mkstemp()[1]) for _ in range(2))
        given = list(arguments), threads, dict(environment or {}), prepare, str(self._output), str(self._errors)
        self._process = CONTEXT.Process(target=_run, args=given)
        self._process.start()
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        """The exit code, or None as long as it runs; that of a signal is negative."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it, and wait until it is gone."""
        self.send_signal(signal.SIGKILL)
        self.wait()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; gives the exit code."""
        self._process.join(timeout)
        assert self._process.exitcode is not None, f"it still runs after {timeout} s"
        return self._process.exitcode

    @property
    def output(self) -> str:
        return self._output.read_text(encoding="utf-8")

    @property
    def errors(self) -> str:
        return self._errors.read_text(encoding="utf-8")


def succeed(arguments: Sequence[str], threads: int = 1) -> None:
    """Run a command that has to come to its end."""
    run = Run(arguments, threads)
    assert run.wait() == 0, run.errors


def _run(
    arguments: list[str],
    threads: int,
    environment: dict[str, str],
    prepare: Callable[[], None] | None,
    output: str,
    errors: str,
) -> None:
    import torch

    from sona_pipeline.cli.app import main

    for own, path in ((1, output), (2, errors)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_TRUNC), own)
    os.environ.update(environment)
    torch.set_num_threads(threads)
    if prepare:
        prepare()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the tests may run in the background, which ignores it
    try:
        main(arguments)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
