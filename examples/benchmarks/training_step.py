"""What outlier exposure and mutual information cost in a training step.

    python examples/benchmarks/training_step.py

Steps of ResNet-18 at 224 px on random pixels, in turn: cross-entropy only; with outliers and their loss; with the
mutual information of pairs as well. Printed are ratios of the medians, each with the range over the rounds.
"""

import time
from dataclasses import replace
from statistics import median
from typing import Annotated

import torch
import typer
from accelerate import Accelerator
from PIL import Image

from sona_pipeline import RECIPES
from sona_pipeline.data import ImageSet
from sona_pipeline.outlier_set import OutlierPairs
from sona_pipeline.training_data import TrainingSets
from sona_pipeline.training_loop import Training


def main(
    network: Annotated[str, typer.Option(help="As for `sona train`.")] = "resnet18",
    image_size: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 224,
    batch_size: Annotated[int, typer.Option(help="ID images a step; as many outliers.")] = 32,
    classes: Annotated[int, typer.Option(help="Number of classes.")] = 200,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of one step each.")] = 7,
) -> None:
    """Time the three kinds of steps in turn."""
    trainings = {
        "CE": training_of(None, {}, network, image_size, batch_size, classes),
        "CE + OE": training_of("pairs", {"mi_weight": 0.0}, network, image_size, batch_size, classes),
        "CE + OE + MI": training_of("pairs", {"mi_weight": 1.0}, network, image_size, batch_size, classes),
    }
    seconds = {name: [] for name in trainings}
    for number in range(rounds + 1):
        for name, training in trainings.items():
            took = time_step(training, image_size, batch_size, classes)
            if number:  # the first round warms up
                seconds[name].append(took)
    for name, took in seconds.items():
        print(f"{name:13} {median(took):.3f} s (median of {rounds})")
    for name, base in (("CE + OE", "CE"), ("CE + OE + MI", "CE + OE")):
        ratios = [a / b for a, b in zip(seconds[name], seconds[base])]
        print(f"{name} / {base}: {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


def training_of(kind, changes: dict, network: str, image_size: int, batch_size: int, classes: int) -> Training:
    """A training on black images, of which only the parts and the loss are used."""
    keys = tuple(map(str, range(classes)))
    images = ImageSet(keys, tuple(range(classes)), keys, lambda _: Image.new("RGB", (8, 8)))
    outliers = OutlierPairs(images, images, None, (1.0,) * classes) if kind else None
    settings = replace(RECIPES["imagenet200"], network=network, image_size=image_size, batch_size=batch_size, **changes)
    return Training(TrainingSets(images, None, outliers), settings, Accelerator())


def time_step(training: Training, image_size: int, batch_size: int, classes: int) -> float:
    """Seconds of one step of the optimizer on random pixels."""
    device = training.accelerator.device
    shape = (batch_size, 3, image_size, image_size)
    batch = {
        "image": torch.randint(0, 256, shape, dtype=torch.uint8, device=device),
        "outlier": torch.randint(0, 256, shape, dtype=torch.uint8, device=device),
        "is_used": torch.ones(batch_size, dtype=torch.bool, device=device),
        "label": torch.randint(0, classes, (batch_size,), device=device),
    }
    if training.loader.dataset.outlier is None:
        del batch["outlier"], batch["is_used"]
    training.model.train()
    started = time.perf_counter()
    training.step(batch, progress=0.0)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    typer.run(main)
