"""How a detector is trained: settings, recipes, and what they have to obey."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch

from sona_pipeline.detection.scores import SCORES
from sona_pipeline.training.items import AUGMENTATIONS
from sona_pipeline.training.methods.base import EnergyMargin, Method, OutlierExposure
from sona_pipeline.training.methods.mixoe import MixOE
from sona_pipeline.training.methods.vos import VOS

METHODS: dict[str, type[Method]] = {
    "oe": OutlierExposure,
    "energy": EnergyMargin,
    "mixoe": MixOE,
    "vos": VOS,
}
OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    "adamw": torch.optim.AdamW,
}
SCHEDULES = {
    "cosine": lambda optimizer, rate, steps: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps),
    "one_cycle": lambda optimizer, rate, steps: torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, steps, pct_start=0.15
    ),
}


@dataclass(frozen=True)
class TrainingSettings:
    """How a detector is trained; the defaults are the paper's recipe for ImageNet-200.

    Attributes:
        network: of `networks.build`: a name of `networks.NETWORKS`, "timm:NAME" or "transformers:NAME".
        pretrained: start from the weights that come with a timm or transformers network.
        image_size: side in pixels of what the network sees.
        crop_pct: share of the short side of an image that is kept in tests, in (0, 1].
        augmentation: a name of `training_data.AUGMENTATIONS`; the same for ID images, outliers and round trips.
        flip: mirror images at random, where left and right mean the same.
        epochs: passes over the ID images.
        batch_size: ID images a step of the optimizer, over all processes and accumulated parts.
        accumulation: parts that a batch is computed in, one after the other, for want of memory.
        optimizer: "sgd" (Nesterov momentum 0.9, which "one_cycle" moves between 0.85 and 0.95) or "adamw".
        learning_rate, weight_decay: of the optimizer.
        schedule: "cosine" or "one_cycle", of the learning rate over all steps.
        method: a name of `METHODS`; without outliers, only "vos" adds anything to the cross-entropy.
        outlier_weight: beta, the weight of the method's loss; None is the method's own.
        mi_weight: gamma, the weight of the mutual information between an image and its own outlier; None is 1 where
            outliers come in pairs with images, and 0 elsewhere.
        min_strength: outliers of less strength are not trained on, since they have hardly changed.
        score: of the detector, a name of `scores.SCORES`.
        id_rate: share of the ID validation images that the threshold accepts; None leaves the detector without one.
        keep: weights of the epoch that is "best" in validation accuracy (the later of equals), or the "last" ones,
            which are kept without validation images.
        seed: of weights, order and augmentation.
    """

    network: str = "resnet18"
    pretrained: bool = False
    image_size: int = 224
    crop_pct: float = 0.875
    augmentation: str = "resized_crop"
    flip: bool = True
    epochs: int = 100
    batch_size: int = 256
    accumulation: int = 1
    optimizer: str = "sgd"
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    schedule: str = "cosine"
    method: str = "oe"
    outlier_weight: float | None = None
    mi_weight: float | None = None
    min_strength: float = 0.0
    score: str = "energy"
    id_rate: float | None = 0.95
    keep: str = "best"
    seed: int = 0


RECIPES = {
    "imagenet200": TrainingSettings(),
    "fine-grained": TrainingSettings(image_size=448, batch_size=32),
    "small": TrainingSettings(
        network="resnet8",
        image_size=32,
        crop_pct=1.0,
        augmentation="crop",
        epochs=20,
        batch_size=64,
        schedule="one_cycle",
        min_strength=0.4,
    ),
}
"""The paper's two recipes, and one for images of about 32 pixels and a machine without a GPU."""


@dataclass(frozen=True)
class Running:
    """How a training is computed. Precision and workers change rounding and random draws: a run goes on with its own.

    Attributes:
        mixed_precision: "no", "fp16" or "bf16"; None leaves it to the configuration of accelerate.
        workers: processes that decode images, besides the one that trains.
        tracker: of accelerate ("tensorboard", "wandb", ...), or None.
        cpu: use no GPU.
    """

    mixed_precision: str | None = None
    workers: int = 0
    tracker: str | None = None
    cpu: bool = False


def check_settings(settings: TrainingSettings) -> None:
    """Raise ValueError for a setting that is out of its range or names what is not there."""
    choices = {
        "augmentation": AUGMENTATIONS,
        "optimizer": OPTIMIZERS,
        "schedule": SCHEDULES,
        "method": METHODS,
        "score": SCORES,
        "keep": ("best", "last"),
    }
    for name, known in choices.items():
        if getattr(settings, name) not in known:
            raise ValueError(f"`{name}` is {getattr(settings, name)!r}, but has to be one of {sorted(known)}")
    for name, least in {"image_size": 8, "epochs": 1, "batch_size": 2, "accumulation": 1}.items():
        if getattr(settings, name) < least:
            raise ValueError(f"`{name}` is {getattr(settings, name)}, but has to be {least} or more")
    for name in ("learning_rate", "weight_decay", "outlier_weight", "mi_weight"):
        value = getattr(settings, name)
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise ValueError(f"`{name}` is {value}, but has to be a finite number of 0 or more")
    if not 0 < settings.crop_pct <= 1:
        raise ValueError(f"`crop_pct` is {settings.crop_pct}, but has to be above 0 and at most 1")
    if not 0 <= settings.min_strength <= 1:
        raise ValueError(f"`min_strength` is {settings.min_strength}, but has to be between 0 and 1")
    if settings.id_rate is not None and not 0 < settings.id_rate < 1:
        raise ValueError(f"`id_rate` is {settings.id_rate}, but has to be between 0 and 1, or None for no threshold")
    if settings.batch_size % settings.accumulation:
        raise ValueError(
            f"`batch_size` {settings.batch_size} cannot be computed in {settings.accumulation} equal parts"
        )
