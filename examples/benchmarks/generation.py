"""How the memory of a generation grows with the number of images, and what the planning of a large one takes.

    python examples/benchmarks/generation.py

`sona generate` runs with the embedded model, at few steps, over copies of the bundled sample; then a list of images is
planned. Each runs in a process of its own, whose peak memory is printed. What generation costs in time is measured in
`speed/`.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import cyclopts

from sona_pipeline import sample

REPORT = """
import atexit, pathlib, re, sys
place = pathlib.Path(sys.argv.pop())
def report():
    peak = int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) / 2**10
    place.write_text(str(peak))
atexit.register(report)
"""
GENERATING = "import runpy\nrunpy.run_module('sona_pipeline', run_name='__main__')"
PLANNING = """
import time
from sona_pipeline import GenerationSettings, open_images, plan_outliers
started = time.perf_counter()
plan = plan_outliers(open_images(sys.argv[1]), GenerationSettings(tuple(f"label {k}" for k in range(800))))
count = len(plan.batches(64))
print(f"{len(plan)} images planned in {time.perf_counter() - started:.1f} s, {count} batches")
"""


def peak_of(script: str, arguments: list[str], place: Path) -> float:
    """Peak memory in MiB of a script in a process of its own (Linux)."""
    subprocess.run([sys.executable, "-c", REPORT + script, *arguments, place / "peak"], check=True)
    return float((place / "peak").read_text())


def peak_memory(counts: list[int], place: Path) -> None:
    """Print the peak memory of `sona generate` over image folders of different sizes, at few steps."""
    images = sample.id_images("train")
    originals = []
    for i in range(len(images)):
        path = place / "originals" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        images.image(i).save(path)
        originals.append(path)
    peaks = []
    for count in counts:
        data = place / f"data-{count}"
        for i in range(count):
            folder = data / images.label_name(i % len(images))
            folder.mkdir(parents=True, exist_ok=True)
            os.link(originals[i % len(images)], folder / f"{i}.png")
        options = ["generate", "--model", "tiny", "--steps", "2", "--batch-size", "64"]
        paths = ["--data", data, "--output", place / f"set-{count}"]
        peaks.append(peak_of(GENERATING, [*options, *map(str, paths)], place))
    print(", ".join(f"{count} images: {peak:.0f} MiB" for count, peak in zip(counts, peaks)))
    print(f"peak memory, last / first: {peaks[-1] / peaks[0]:.3f}")


def planning(count: int, place: Path) -> None:
    """Print what it costs to plan a list of so many images."""
    path = place / "list.txt"
    lines = (f"train/n{k % 1000:08d}/n{k % 1000:08d}_{k}.JPEG {k % 1000}\n" for k in range(count))
    path.write_text("".join(lines))
    print(f"peak memory {peak_of(PLANNING, [str(path)], place):.0f} MiB")


def main() -> None:
    """Measure memory and planning."""
    with tempfile.TemporaryDirectory() as place:
        peak_memory([1000, 20000], Path(place))
        planning(1_300_000, Path(place))


if __name__ == "__main__":
    cyclopts.App(default_command=main, version_flags=())()
