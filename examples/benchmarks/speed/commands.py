"""Commands of `sona` in processes of their own, which stay: what is timed is a command without Python's imports."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import IO

from planned import SETTINGS

from sona_pipeline import ImageSet

SERVER = """\
import json, os, sys
replies = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
{call}
for line in sys.stdin:
    call(json.loads(line))
    print("done", file=replies, flush=True)
"""
"""Runs the command in each line of its input; what commands print goes to a log."""
CALL = "from sona_pipeline.cli.app import app as call"
CALL_OF_0_1_0 = "from sona_pipeline.cli import app\ndef call(words): app(words, standalone_mode=False)"
ROOT = Path(__file__).parents[3]
_NUMBERS = count()


@dataclass(frozen=True)
class Sona:
    """A process that runs commands of `sona`, one after another, and a log of what they print."""

    process: subprocess.Popen
    log: IO[bytes]

    def start(self, words: list[str]) -> None:
        """Start a command."""
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()

    def wait(self) -> None:
        """Wait until the command is done; RuntimeError, with the end of what it said, if it failed."""
        if not self.process.stdout.readline():
            self.log.seek(0)
            raise RuntimeError(f"a command of sona failed: {self.log.read().decode(errors='replace')[-2000:]}")

    def __call__(self, words: list[str]) -> None:
        """Run a command."""
        self.start(words)
        self.wait()


@contextmanager
def sona_process(
    package: Path | None = None, threads: int | None = None, environment: Mapping[str, str] | None = None
) -> Iterator[Sona]:
    """A process for commands.

    Args:
        package: folder that version 0.1.0 is taken from; this version by default.
        threads: as many as PyTorch takes by default.
        environment: variables that are added.
    """
    added = dict(environment or {}) | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    words = [sys.executable, "-c", SERVER.format(call=CALL_OF_0_1_0 if package else CALL)]
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": os.environ | added}
    place = package or ROOT  # what lies there is imported first
    with tempfile.TemporaryFile() as log, subprocess.Popen(words, stderr=log, cwd=place, **options) as process:
        try:
            yield Sona(process, log)
        finally:
            process.kill()


def generate(sources: list[str], output: Path | str, *options: str) -> list[str]:
    """The words of `sona generate` with the embedded model, into a new folder in `output` at each call."""
    return ["generate", *sources, "--model", "tiny", *options, "--output", f"{output}/set-{next(_NUMBERS)}"]


@contextmanager
def written(images: ImageSet) -> Iterator[tuple[list[str], Path]]:
    """Images as PNG files by class, and OOD labels: the words that name them, and a folder for what is made of them."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for index in range(len(images)):
            path = folder / "images" / images.label_name(index) / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            images.image(index).save(path)
        labels = folder / "labels.txt"
        labels.write_text("\n".join(SETTINGS.ood_labels), encoding="utf-8")
        yield ["--data", str(folder / "images"), "--ood-labels", str(labels)], folder
