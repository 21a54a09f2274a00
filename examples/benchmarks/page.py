"""How long a visitor of the page waits for a run, and for the first masks of it.

    python examples/benchmarks/page.py

Serves `sona demo` on the embedded model, and runs the same example again and again through gradio's client, with the
page's own settings (35 of 50 steps), with and without the comparisons.
"""

import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import cyclopts
from cyclopts.types import PositiveInt
from gradio_client import Client, handle_file

from sona_pipeline import sample


def main(*, rounds: PositiveInt = 7) -> None:
    """Print medians and ranges in seconds.

    Args:
        rounds: Runs of each kind, at least 1, after one to warm up.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "sona_pipeline", "demo", "--port", str(port)])
    try:
        client = connected(port)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "t-shirt.png"
            sample.id_images("test").image(0).save(path)
            for compares in (True, False):
                times = [seconds(client, path, compares) for _ in range(rounds + 1)][1:]
                print(f"{'with' if compares else 'without'} comparisons, {rounds} rounds:")
                for name, took in zip(("first masks", "whole run"), zip(*times)):
                    print(f"  {name}: {median(took):.2f} s ({min(took):.2f} to {max(took):.2f})")
    finally:
        server.terminate()
        server.wait()


def connected(port: int) -> Client:
    """A client of the page, once it is served."""
    deadline = time.monotonic() + 120
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return Client(f"http://127.0.0.1:{port}/", verbose=False)
        if time.monotonic() > deadline:
            raise TimeoutError("the page is not served")
        time.sleep(0.5)


def seconds(client: Client, path: Path, compares: bool) -> tuple[float, float]:
    """Seconds of a run until its first masks, and until its end."""
    started = time.perf_counter()
    labels = {"id_label": "t-shirt", "ood_label": "bag"}
    job = client.submit(path=handle_file(str(path)), compares=compares, api_name="/make_outlier", **labels)
    next(iter(job))
    first = time.perf_counter() - started
    job.result()
    return first, time.perf_counter() - started


if __name__ == "__main__":
    cyclopts.App(default_command=main, version_flags=())()
