"""The plan of a generation: what is made of each image, from the seed and the image's key alone."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from string import Formatter
from typing import NamedTuple

import numpy as np

from sona_pipeline.common.names import safe_name, unique_names
from sona_pipeline.common.settings import check_ranges
from sona_pipeline.data.class_names import composed
from sona_pipeline.data.image_set import ImageSet
from sona_pipeline.generation.checks import bounds_of
from sona_pipeline.generation.label_rules import RULES
from sona_pipeline.generation.settings import GenerationSettings
from sona_pipeline.generation.ways import WAYS


@dataclass(frozen=True)
class PlannedOutlier:
    """What will be made of image `index`: file name, stop step, OOD label, and the seed of its noise."""

    index: int
    file_name: str
    stop_step: int
    ood_label: str
    seed: int


class Batch(NamedTuple):
    """Outliers that are made together: a name that follows from its members, and their indices."""

    name: str
    indices: np.ndarray


@dataclass(frozen=True, eq=False)
class Plan:
    """The planned outliers of a set in columns, one entry an image; `plan[i]` puts the i-th together.

    Attributes:
        images: what they are made of.
        settings: how they are made.
        hashes: of the image keys, `[N]` uint64, which name the files.
        stop_steps: `[N]`, 1 .. `num_inference_steps`.
        labels: indices of the OOD labels, `[N]`.
        seeds: `[N]`, not negative.
        suffix: of the files, without the dot.
    """

    images: ImageSet
    settings: GenerationSettings
    hashes: np.ndarray
    stop_steps: np.ndarray
    labels: np.ndarray
    seeds: np.ndarray
    suffix: str = "png"

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> PlannedOutlier:
        return PlannedOutlier(
            index=int(index),
            file_name=f"{self._folders[self.images.label_name(index)]}/{self.hashes[index]:016x}.{self.suffix}",
            stop_step=int(self.stop_steps[index]),
            ood_label=self.settings.ood_labels[self.labels[index]],
            seed=int(self.seeds[index]),
        )

    @cached_property
    def _folders(self) -> dict[str, str]:
        return unique_names(self.images.classes, folder_name)

    def __iter__(self) -> Iterator[PlannedOutlier]:
        return (self[index] for index in range(len(self)))

    @property
    def unet_rows(self) -> int:
        """Rows that the UNet computes for all of them: three a step for SONA."""
        rows, steps = WAYS[self.settings.way].rows, self.settings.num_inference_steps
        counts = np.bincount(self.stop_steps, minlength=steps + 1).tolist()
        return sum(count * rows(step, steps) for step, count in enumerate(counts) if count)

    def batches(self, size: int) -> list[Batch]:
        """All outliers in batches of (nearly) one stop step each; the batches are in random, but fixed order.

        The random order makes the time left come out right, and mixes stop steps within the shards of a set.
        """
        order = np.lexsort((self.hashes, -self.stop_steps.astype(np.int64)))
        chunks = (order[start : start + size] for start in range(0, len(order), size))
        return sorted((self.batch(indices) for indices in chunks), key=lambda batch: batch.name)

    def batch(self, indices: np.ndarray) -> Batch:
        """The outliers at `indices` as a batch."""
        return Batch(hashlib.sha256(self.hashes[indices].tobytes()).hexdigest()[:16], indices)


def plan_outliers(
    images: ImageSet, settings: GenerationSettings, similarity: np.ndarray | None = None, suffix: str = "png"
) -> Plan:
    """The outlier of every image; each follows from the seed, the image's key and its class alone.

    An image has the same place in the schedule, `stop_step / num_inference_steps` up to rounding, whatever the number
    of steps.

    Args:
        images: labelled images.
        settings: see `GenerationSettings`.
        similarity: of ID classes and OOD labels, `[classes, labels]`; rules other than "random" need it.
        suffix: of the files, without the dot.

    Raises:
        ValueError: the settings do not go with the images.
    """
    check_settings(images, settings)
    if similarity is None:
        if settings.label_choice != "random":
            raise ValueError(f"the label choice {settings.label_choice!r} needs similarities of the labels")
        similarity = np.broadcast_to(np.float32(0), (len(images.classes), len(settings.ood_labels)))
    allowed, uses_stop_step = RULES[settings.label_choice](similarity), WAYS[settings.way].uses_stop_step
    plan = Plan(
        images,
        settings,
        hashes=np.empty(len(images), np.uint64),
        stop_steps=np.empty(len(images), np.int32),
        labels=np.empty(len(images), np.int32),
        seeds=np.empty(len(images), np.int64),
        suffix=suffix,
    )
    for index, key in enumerate(images.keys):
        digest = hashlib.sha256(f"{settings.seed}/{key}".encode()).digest()
        step, label, seed = (int.from_bytes(digest[k : k + 8], "big") for k in (0, 8, 16))
        choice = allowed[images.labels[index]]
        plan.hashes[index] = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
        drawn = 1 + (step * settings.num_inference_steps >> 64)
        plan.stop_steps[index] = drawn if uses_stop_step else settings.num_inference_steps
        plan.labels[index] = choice[label * len(choice) >> 64]
        plan.seeds[index] = seed >> 1
    return plan


def folder_name(class_name: str) -> str:
    """The class name, with %-escapes for what file systems, image lists and `datasets` trip over.

    `datasets` takes some words in folder names for splits; OpenOOD's image lists end a path at the first space.
    """
    return safe_name(class_name, r'[\x00-\x20%/\\:*?"<>|]|(?i:train|test|val|dev|eval)')


def check_settings(images: ImageSet, settings: GenerationSettings) -> None:
    """Raise ValueError if the images have no classes, or the settings cannot be used with them."""
    check_ranges(settings)
    if not math.isfinite(settings.guidance_scale):
        raise ValueError(f"the guidance scale is {settings.guidance_scale}: give a finite number")
    if not len(images):
        raise ValueError("there are no images to make outliers of: choose other classes, or another split")
    if not images.labels:
        raise ValueError("the images have no classes: put them into one sub-folder a class")
    if len(set(images.keys)) < len(images):
        raise ValueError("some images have the same key: give each a key of its own")
    if not settings.ood_labels or not all(label.strip() for label in settings.ood_labels):
        raise ValueError("no OOD labels, or a blank one: give at least one, and words for each")
    names = {composed(settings.id_label(name)).casefold() for name in images.classes}
    if clashes := [label for label in settings.ood_labels if composed(label).casefold() in names]:
        raise ValueError(f"OOD labels {clashes} are ID classes as well: leave them out")
    for prompt in (settings.prompt, settings.ood_prompt or settings.prompt):
        _check_template(prompt)
    bounds_of(settings.reject)


def _check_template(prompt: str) -> None:
    try:
        fields = [name for _, name, _, _ in Formatter().parse(prompt) if name is not None]
    except ValueError:
        fields = []
    if fields != [""]:
        raise ValueError(f"the prompt {prompt!r} needs just one {{}}, for the label")
