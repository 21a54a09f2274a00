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
    """What will be made of image `index`.

    Attributes:
        index: of the image.
        file_name: of the outlier.
        stop_step: up to which the image is noised.
        meanings: the OOD label; or two words, OOD labels or other ID classes, between which the meaning lies.
        seed: of the noise.
    """

    index: int
    file_name: str
    stop_step: int
    meanings: tuple[str, ...]
    seed: int

    @property
    def ood_label(self) -> str:
        """What the outlier shall mean, in words."""
        return " + ".join(self.meanings)


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
        stop_steps: `[N]`, `first_step(settings)` .. `num_inference_steps`.
        labels: indices of the OOD labels, `[N]`.
        seeds: `[N]`, not negative.
        partners: `[N]`, not negative: which ID classes meanings are blended with, from all that there are.
        suffix: of the files, without the dot.
    """

    images: ImageSet
    settings: GenerationSettings
    hashes: np.ndarray
    stop_steps: np.ndarray
    labels: np.ndarray
    seeds: np.ndarray
    partners: np.ndarray
    suffix: str = "png"

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> PlannedOutlier:
        return PlannedOutlier(
            index=int(index),
            file_name=f"{self._folders[self.images.label_name(index)]}/{self.hashes[index]:016x}.{self.suffix}",
            stop_step=int(self.stop_steps[index]),
            meanings=self._meanings(index),
            seed=int(self.seeds[index]),
        )

    def _meanings(self, index: int) -> tuple[str, ...]:
        label, partner = self.settings.ood_labels[self.labels[index]], int(self.partners[index])
        if self.settings.blend == "none":
            return (label,)
        others = [name for name in self.images.classes if name != self.images.label_name(index)]
        if self.settings.blend == "labels":
            return label, self.settings.id_label(others[partner % len(others)])
        partner, first = divmod(partner, len(others))
        second = (first + 1 + partner % (len(others) - 1)) % len(others)
        return self.settings.id_label(others[first]), self.settings.id_label(others[second])

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

        Where the way asks for it, those of a stop step are ordered by their labels. The random order makes the time
        left come out right, and mixes stop steps within the shards of a set.
        """
        labels = (self.labels, self.images.labels) if WAYS[self.settings.way].shares_labels else ()
        order = np.lexsort((self.hashes, *labels, -self.stop_steps.astype(np.int64)))
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
    steps, first = settings.num_inference_steps, first_step(settings)
    plan = Plan(
        images,
        settings,
        hashes=np.empty(len(images), np.uint64),
        stop_steps=np.empty(len(images), np.int32),
        labels=np.empty(len(images), np.int32),
        seeds=np.empty(len(images), np.int64),
        partners=np.empty(len(images), np.int64),
        suffix=suffix,
    )
    for index, key in enumerate(images.keys):
        digest = hashlib.sha256(f"{settings.seed}/{key}".encode()).digest()
        step, label, seed, partner = (int.from_bytes(digest[k : k + 8], "big") for k in (0, 8, 16, 24))
        choice = allowed[images.labels[index]]
        plan.hashes[index] = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big")
        drawn = first + (step * (steps - first + 1) >> 64)
        plan.stop_steps[index] = drawn if uses_stop_step else steps
        plan.labels[index] = choice[label * len(choice) >> 64]
        plan.seeds[index], plan.partners[index] = seed >> 1, partner >> 1
    return plan


def first_step(settings: GenerationSettings) -> int:
    """The first stop step whose strength is at least that of the settings."""
    return max(1, math.ceil(round(settings.min_strength * settings.num_inference_steps, 9)))


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
    _check_template(settings.prompt)
    _check_template(settings.ood_prompt or settings.prompt, "id" if settings.ood_prompt else "")
    _check_meanings(images, settings)
    bounds_of(settings.reject)


def _check_template(prompt: str, other: str = "") -> None:
    """Raise ValueError unless a template has one place for the label, and none with a name but `other`."""
    try:
        fields = [name for _, name, _, _ in Formatter().parse(prompt) if name is not None]
    except ValueError:
        fields = []
    if fields.count("") != 1 or set(fields) - {"", other}:
        also = f", and may have {{{other}}} for the word of the ID class" if other else ""
        raise ValueError(f"the prompt {prompt!r} needs just one {{}}, for the label{also}")


def _check_meanings(images: ImageSet, settings: GenerationSettings) -> None:
    """Raise ValueError unless meanings beyond prompts go with the images and the way."""
    least = {"none": 0, "labels": 2, "classes": 3}[settings.blend]
    if len(images.classes) < least:
        raise ValueError(
            f"a blend of {settings.blend!r} needs {least} classes or more, and the images have {len(images.classes)}"
        )
    beyond = "blend" if settings.blend != "none" else "ood_embeddings" if settings.ood_embeddings else ""
    if beyond and not WAYS[settings.way].takes_embeddings:
        raise ValueError(f"the way {settings.way!r} takes prompts only: leave `{beyond}` out")
    if settings.ood_embeddings and settings.blend != "none":
        raise ValueError("embeddings are meanings by themselves: leave `blend` or `ood_embeddings` out")
    if settings.ood_embeddings and "{id}" in (settings.ood_prompt or ""):
        raise ValueError("embeddings go into one prompt for all classes: leave {id} out of `ood_prompt`")
    if settings.ood_embeddings and settings.label_choice != "random":
        raise ValueError(
            f"embeddings have no words to be {settings.label_choice!r} by: leave `label_choice` at 'random'"
        )
