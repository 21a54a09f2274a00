"""What outlier exposure and mutual information cost in a training step, forward and back."""

from dataclasses import replace

import torch
from accelerate import Accelerator
from PIL import Image
from timing import SEED, Comparison, Ratio, rounds_in_turn

from sona_pipeline import RECIPES, ImageSet, OutlierPairs, Training, TrainingSets

NETWORK = "resnet18"
IMAGE_SIZE = 224
BATCH_SIZE = 32
"""ID images of a step; as many outliers."""
CLASSES = 200


def compare(rounds: int) -> list[Comparison]:
    """Steps on random pixels: by cross-entropy only; with outliers and their loss; with mutual information as well."""
    torch.manual_seed(SEED)
    trainings = {
        "CE": training_of(None, {}),
        "CE + OE": training_of("pairs", {"mi_weight": 0.0}),
        "CE + OE + MI": training_of("pairs", {"mi_weight": 1.0}),
    }
    things = {name: step_of(training) for name, training in trainings.items()}
    counts = {"images": BATCH_SIZE, "side": IMAGE_SIZE, "classes": CLASSES}
    ratios = (Ratio("CE + OE", "CE"), Ratio("CE + OE + MI", "CE + OE", at_most=1.05))
    return [Comparison(NETWORK, counts, 1, "steps", rounds_in_turn(things, rounds), ratios)]


def training_of(kind: str | None, changes: dict) -> Training:
    """A training on black images, of which only the parts and the loss are used."""
    keys = tuple(map(str, range(CLASSES)))
    images = ImageSet(keys, tuple(range(CLASSES)), keys, lambda _: Image.new("RGB", (8, 8)))
    outliers = OutlierPairs(images, images, None, (1.0,) * CLASSES) if kind else None
    settings = replace(RECIPES["imagenet200"], network=NETWORK, image_size=IMAGE_SIZE, batch_size=BATCH_SIZE, **changes)
    return Training(TrainingSets(images, None, outliers), settings, Accelerator())


def step_of(training: Training):
    """One step of the optimizer, on the same random pixels whenever it is called."""
    device = training.accelerator.device
    shape = (BATCH_SIZE, 3, IMAGE_SIZE, IMAGE_SIZE)
    batch = {
        "image": torch.randint(0, 256, shape, dtype=torch.uint8, device=device),
        "label": torch.randint(0, CLASSES, (BATCH_SIZE,), device=device),
        "place": torch.arange(BATCH_SIZE, device=device),
    }
    if training.loader.dataset.outlier is not None:
        batch["outlier"] = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
        batch["outlier_place"] = torch.arange(BATCH_SIZE, device=device)
        batch["strength"] = torch.ones(BATCH_SIZE, device=device)
    training.model.train()
    return lambda: training.step(batch, progress=0.0)
