"""What generation costs beside the bare UNet and beside a plain loop, and how memory and planning time grow.

    python examples/benchmarks/generation.py

With the embedded model and the bundled sample. Three things are timed in turn in each round: bare UNet calls of the
very rows that the plan needs, `generate_outliers`, and a loop over the images in folder order that calls the pipeline
batch by batch with a random stop step an image and saves the outliers. Printed are ratios, as medians over the rounds.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import torch
import typer

from sona_pipeline import sample
from sona_pipeline.checkpoint import load_pipeline
from sona_pipeline.data import ImageSet
from sona_pipeline.generate import OutputSettings, generate_outliers
from sona_pipeline.imaging import fit
from sona_pipeline.plan import GenerationSettings, Plan, plan_outliers

SETTINGS = GenerationSettings(ood_labels=sample.OOD_LABELS)
REPORT = """
import atexit, pathlib, re, sys
def report():
    peak = int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) / 2**10
    pathlib.Path(sys.argv[-1]).write_text(str(peak))
atexit.register(report)
"""
GENERATING = "from sona_pipeline.cli import app\napp(sys.argv[1:-1])"
PLANNING = """
import time
from sona_pipeline.data import open_images
from sona_pipeline.plan import GenerationSettings, plan_outliers
started = time.perf_counter()
plan = plan_outliers(open_images(sys.argv[1]), GenerationSettings(tuple(f"label {k}" for k in range(800))))
count = len(plan.batches(64))
print(f"{len(plan)} images planned in {time.perf_counter() - started:.1f} s, {count} batches")
"""


@torch.no_grad()
def bare_unet(pipe, plan: Plan, batch_size: int) -> None:
    """The UNet calls that the plan needs, with nothing around them."""
    config = pipe.unet.config
    for batch in plan.batches(batch_size):
        steps = plan.stop_steps[batch.indices]
        latents = torch.randn(3 * len(steps), config.in_channels, config.sample_size, config.sample_size)
        prompts = torch.randn(3 * len(steps), pipe.tokenizer.model_max_length, config.cross_attention_dim)
        for step in range(max(steps), 0, -1):
            rows = 3 * int((steps >= step).sum())
            pipe.unet(latents[:rows], step, encoder_hidden_states=prompts[:rows], return_dict=False)


def plain_loop(pipe, images: ImageSet, batch_size: int, folder: Path) -> None:
    """Batches in folder order, each in one call of the pipeline with a random stop step an image."""
    for start in range(0, len(images), batch_size):
        indices = range(start, min(start + batch_size, len(images)))
        outliers = pipe(
            [fit(images.image(i), 32, "L") for i in indices],
            id_prompt=[SETTINGS.id_prompt_of(images.label_name(i)) for i in indices],
            ood_prompt=[SETTINGS.ood_prompt_of(SETTINGS.ood_labels[i % 2]) for i in indices],
            generator=[torch.Generator().manual_seed(i) for i in indices],
        ).images
        for i, outlier in zip(indices, outliers):
            outlier.save(folder / f"{i}.png")


def seconds(function, *arguments) -> float:
    """How long a call takes."""
    started = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - started


def compare(images: ImageSet, rounds: int, batch_size: int, place: Path) -> None:
    """Time the three in turn, and print ratios."""
    pipe = load_pipeline("tiny", "cpu")
    plan = plan_outliers(images, SETTINGS)
    writing = OutputSettings(batch_size=batch_size)
    bare_unet(pipe, plan_outliers(images.take(range(batch_size)), SETTINGS), batch_size)
    times: dict[str, list[float]] = {"bare": [], "generate": [], "loop": []}
    for number in range(rounds):
        folder = place / f"round-{number}"
        (folder / "loop").mkdir(parents=True)
        times["bare"].append(seconds(bare_unet, pipe, plan, batch_size))
        times["generate"].append(seconds(generate_outliers, images, pipe, folder / "set", SETTINGS, writing))
        times["loop"].append(seconds(plain_loop, pipe, images, batch_size, folder / "loop"))
        print({name: round(values[-1], 1) for name, values in times.items()}, flush=True)
    for name, other in (("generate", "bare"), ("generate", "loop")):
        ratios = [one / two for one, two in zip(times[name], times[other])]
        print(
            f"{name} / {other}: {statistics.median(ratios):.3f} (from {min(ratios):.3f} to {max(ratios):.3f}),"
            f" {len(images)} images, batch {batch_size}, {rounds} rounds"
        )


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


def main(
    images: Annotated[int, typer.Option(help="Images to generate from, at most 1,500.")] = 1000,
    rounds: Annotated[int, typer.Option(help="Rounds of the comparison.")] = 3,
    batch_size: Annotated[int, typer.Option(help="Images in a batch.")] = 64,
    skip_comparison: Annotated[bool, typer.Option(help="Only memory and planning.")] = False,
) -> None:
    """Time generation in turn with bare UNet calls and with a plain loop; then measure memory and planning."""
    place = Path(tempfile.mkdtemp())
    try:
        if not skip_comparison:
            compare(sample.id_images("train").take(range(images)), rounds, batch_size, place)
        peak_memory([1000, 20000], place)
        planning(1_300_000, place)
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    typer.run(main)
