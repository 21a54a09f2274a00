"""Settings of the whole way; what is not among them is an option of the single commands, and comes from their files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Gt

from sona_pipeline.common.settings import OneOf
from sona_pipeline.data.settings import ImageSource
from sona_pipeline.detection.settings import ClassifierSettings
from sona_pipeline.training.settings import RECIPES


@dataclass(frozen=True)
class FitJob:
    """Where everything goes, how much is done, and whether it is done at all."""

    output: Path
    """Folder for outliers, detectors, results and the report."""
    dry_run: bool = False
    """Print what would be done, with times and disk, and write nothing."""
    most_hours: Annotated[float, Gt(0)] = 24.0
    """Stop after the plan if it takes longer."""
    check_classes: Annotated[int, Ge(0)] | None = None
    """Hold so many of the classes out in turn, as near-OOD images that no training knew, to see whether outliers help:
    two more trainings each. They also choose the detectors' score, unless --train-config names one. By default 3, or as
    many as leave two classes, of up to 3,000 images, and else 0."""
    seed: int = 0
    """Of outliers, detectors, and what is held out."""


@dataclass(frozen=True)
class FitImages(ImageSource):
    """The labelled images, and what detectors are tested on."""

    validation: str | None = None
    """Labelled ID images for thresholds and best epochs (a tenth of the images is held out by default)."""
    test: str | None = None
    """Labelled ID test images (a fifth of the images is held out by default)."""
    near: tuple[str, ...] = ()
    """Near-OOD test images as NAME=IMAGES; may be repeated."""
    far: tuple[str, ...] = ()
    """Far-OOD test images as NAME=IMAGES; may be repeated."""


@dataclass(frozen=True)
class FitModels:
    """What makes the outliers, and what is trained."""

    model: str | None = None
    """Diffusion model that makes outliers, as `sona generate` takes it, and by default as there."""
    ood_labels: str | None = None
    """Meanings of the outliers, as `sona generate` takes them."""
    generate_config: Path | None = None
    """YAML file with other options of `sona generate`, or the settings.json of an outlier set."""
    recipe: Annotated[str | None, OneOf(RECIPES)] = None
    """How detectors are trained, as `sona train` has it. By default 'finetune' for a classifier, 'small' for up
    to 64 px, else 'imagenet200'."""
    train_config: Path | None = None
    """YAML file with other options of `sona train`, or the training.json of a detector."""


FIT = {"Job": FitJob, "Images": FitImages, "Models": FitModels, "Classifier": ClassifierSettings}
"""What `sona fit` is told, by headings."""
