"""Settings of a training: the images, how a detector is trained, and on what; and the recipes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Gt, Interval, Le, Lt

from sona_pipeline.common.registry import Registry
from sona_pipeline.common.settings import OneOf, check_ranges, settings_of
from sona_pipeline.data.settings import ImageSource
from sona_pipeline.detection.scores import OWN_SCORES
from sona_pipeline.training.methods import METHODS

OPTIMIZERS: Registry[Callable[..., Any]] = Registry(
    {"sgd": "sona_pipeline.training.optimization:nesterov_sgd", "adamw": "torch.optim:AdamW"}
)
SCHEDULES: Registry[Callable[..., Any]] = Registry(
    {name: f"sona_pipeline.training.optimization:{name}" for name in ("cosine", "one_cycle")}
)
"""Functions of an optimizer, its highest learning rate and the number of steps."""
AUGMENTATIONS: Registry[Callable[[int], list[Any]]] = Registry(
    {name: f"sona_pipeline.training.augmentation:{name}" for name in ("resized_crop", "crop", "none")}
)
OUTLIER_AUGMENTATIONS: Registry[Callable[[int], list[Any]]] = Registry(
    {name: f"sona_pipeline.training.augmentation:{name}" for name in ("strong", "none")}
)
"""Both are functions of the size to torchvision's transforms."""
Weight = Annotated[float, Ge(0), Lt(math.inf)]
Margin = Annotated[float, Interval(ge=-1000, le=1000)]
PRECISIONS, KEPT = ("no", "fp16", "bf16"), ("best", "last")


@dataclass(frozen=True)
class TrainingImages(ImageSource):
    """What a detector is trained on."""

    outliers: tuple[Path, ...] = ()
    """Outlier set of these images, made by `sona generate`; may be repeated, and each time an image is trained on, its
    outlier is drawn from one of the sets."""
    real_outliers: str | None = None
    """Any other images to be exposed to, instead of an outlier set."""
    validation: str | None = None
    """Labelled ID images for threshold and best epoch."""
    validation_share: Annotated[float, Interval(ge=0, le=0.9)] = 0.1
    """Without validation images: share of the training images that is held out."""
    validation_split: str | None = None
    """Split of the validation images, if it is another one."""


@dataclass(frozen=True)
class TrainingSettings:
    """How a detector is trained; the defaults are the paper's recipe for ImageNet-200."""

    network: str = "resnet18"
    """'resnet18'; 'resnet8' or 'resnet20' for about 32 px; 'timm:NAME' or 'transformers:NAME'."""
    pretrained: bool = False
    """Fine-tune the weights that come with a timm or transformers network."""
    image_size: Annotated[int, Ge(8)] = 224
    """Side in pixels of what the network sees."""
    crop_pct: Annotated[float, Gt(0), Le(1)] = 0.875
    """Share of the short side of an image that is kept in tests."""
    augmentation: Annotated[str, OneOf(AUGMENTATIONS)] = "resized_crop"
    """Random crops, the same for ID images, outliers and round trips: of any part of the whole image, of the padded
    middle square for small ones, or none."""
    flip: bool = True
    """Mirror images at random, where left and right mean the same."""
    outlier_augmentation: Annotated[str, OneOf(OUTLIER_AUGMENTATIONS)] = "none"
    """What outliers undergo besides: 'strong' is one change out of many kinds, three times of four, so that they also
    show what is unlike the ID images in colour, sharpness and layout."""
    feature_scale: Annotated[float, Gt(0), Lt(math.inf)] | None = None
    """Give the features of each image this standard deviation and mean 0 before the head (0.5 in ASCOOD); None (null in
    a file) leaves them as they are."""
    epochs: Annotated[int, Ge(1)] = 100
    """Passes over the ID images."""
    batch_size: Annotated[int, Ge(2)] = 256
    """ID images a step of the optimizer, over all processes and accumulated parts."""
    accumulation: Annotated[int, Ge(1)] = 1
    """Parts that a batch is computed in, one after the other, to save memory."""
    optimizer: Annotated[str, OneOf(OPTIMIZERS)] = "sgd"
    """'sgd' (Nesterov momentum 0.9, which 'one_cycle' moves between 0.85 and 0.95) or 'adamw'."""
    learning_rate: Annotated[float, Gt(0), Lt(math.inf)] = 0.1
    """Highest learning rate."""
    weight_decay: Weight = 5e-4
    """Weight decay of the optimizer."""
    schedule: Annotated[str, OneOf(SCHEDULES)] = "cosine"
    """Of the learning rate over all steps."""
    method: Annotated[str, OneOf(METHODS)] = "oe"
    """What is added to the cross-entropy: 'oe' (outlier exposure), 'energy' (energy margins), 'mixoe', 'mcd', 'udg'; or
    without outliers 'ascood' (best with `feature_scale` 0.5), 'vos', 'cider', 'npos' (these two with the score knn)."""
    outlier_weight: Weight | None = None
    """Weight beta of the method's loss (the method's own by default)."""
    m_in: Margin | None = None
    """Of the method 'energy': fixed margin that ID energies are held below (-23 on CIFAR-10, -27 on CIFAR-100, where
    networks were fine-tuned). By default, margins follow the energies of the batch."""
    m_out: Margin | None = None
    """Of the method 'energy': fixed margin that the energies of outliers are held above (-5 on CIFAR)."""
    mi_weight: Weight | None = None
    """Weight gamma of the mutual information between an image and its own outlier (1 where they come in pairs)."""
    min_strength: Annotated[float, Interval(ge=0, le=1)] = 0.0
    """Pass over outliers of less strength, since they have hardly changed."""
    score: Annotated[str, OneOf(OWN_SCORES)] = "energy"
    """Of the detector. For 'energy+knn' it keeps features of training images, at most 20 MB."""
    id_rate: Annotated[float, Gt(0), Lt(1)] | None = 0.95
    """Share of the ID validation images that the threshold accepts; None (null in a file) leaves the detector without
    one."""
    keep: Annotated[str, OneOf(KEPT)] = "best"
    """Weights of the 'best' epoch by validation accuracy (the later of equals), or the 'last' ones."""
    freeze_batch_norm: bool = False
    """Leave the running statistics of batch norm as they are: for a classifier that is kept, whose images these
    statistics are of."""
    max_accuracy_drop: Annotated[float, Interval(ge=0, le=100)] | None = None
    """Percent of its validation accuracy that a kept classifier may lose. Its weights are brought back towards what
    they were: by a quarter of their change, or more as needed. None (null in a file) leaves them as trained."""
    seed: int = 0
    """Of weights, order, augmentation and what is held out."""


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
        outlier_augmentation="strong",
    ),
    "finetune": TrainingSettings(
        augmentation="crop",
        epochs=5,
        batch_size=64,
        learning_rate=1e-3,
        min_strength=0.4,
        outlier_augmentation="strong",
        keep="last",
        freeze_batch_norm=True,
        max_accuracy_drop=1.0,
    ),
}
"""The paper's two recipes; one for images of about 32 pixels and a machine without a GPU; and one for a classifier that
is kept."""


@dataclass(frozen=True)
class TrainingJob:
    """Where the detector goes, and what its training starts from."""

    output: Path
    """Folder for the detector."""
    recipe: Annotated[str, OneOf(RECIPES)] = "imagenet200"
    """'imagenet200' or 'fine-grained' (the paper's), 'small' (32 px, no GPU), or 'finetune' (for a classifier that is
    kept, and then the default); other options change it."""


@dataclass(frozen=True)
class Running:
    """How a training is computed; precision and workers change rounding and random draws, so a run keeps its own."""

    mixed_precision: Annotated[str, OneOf(PRECISIONS)] | None = None
    """Precision of the computation (that of accelerate's configuration by default)."""
    workers: Annotated[int, Ge(0)] = 0
    """Processes that decode images, besides the one that trains."""
    tracker: str | None = None
    """Tracker of accelerate: 'tensorboard', 'wandb', ..."""
    cpu: bool = False
    """Use no GPU."""


def check_settings(settings: TrainingSettings) -> None:
    """Raise ValueError for a setting that is out of its range, names what is not there, or does not go with others."""
    check_ranges(settings)
    if settings.batch_size % settings.accumulation:
        raise ValueError(
            f"`batch_size` {settings.batch_size} cannot be computed in {settings.accumulation} equal parts"
        )
    _check_margins(settings)


def _check_margins(settings: TrainingSettings) -> None:
    m_in, m_out = settings.m_in, settings.m_out
    if (m_in is None) != (m_out is None):
        raise ValueError(f"`m_in` is {m_in} and `m_out` {m_out}: give both margins, or neither")
    if m_in is None or m_out is None:
        return
    if settings.method != "energy":
        raise ValueError(f"`m_in` and `m_out` are margins of the method 'energy', but `method` is {settings.method!r}")
    if not m_in < m_out:
        raise ValueError(f"`m_in` is {m_in}, but has to be below `m_out`, which is {m_out}: ID images have less energy")


def settings_in(record: dict) -> dict:
    """The settings in the training.json of an earlier run; of its images there are digests only."""
    names = [setting.name for setting in settings_of(TrainingSettings)]
    return {name: record[name] for name in (*names, "mixed_precision", "workers") if name in record}
