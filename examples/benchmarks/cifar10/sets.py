"""Outlier sets of the benchmark: planned by the package, made by any way, written as `sona generate` writes them."""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UniPCMultistepScheduler

from sona_pipeline import (
    GenerationSettings,
    ImageSet,
    OutlierMaker,
    OutlierWriter,
    OutputSettings,
    SONAPipeline,
    Track,
    Work,
    generate_outliers,
    make_batches,
    make_plan,
    only_run,
    settle_settings,
    write_text,
)

BATCH_SIZE = 64
SECONDS = "seconds.txt"
LATENT_RANGE = 4.2
"""Of the embedded model for colour: 99.5 % of the values of ID images' latents are less, as absolute values."""


@dataclass(frozen=True)
class Recipe:
    """How a set is made.

    Attributes:
        changes: of the generation settings.
        options: of the pipeline's call: ablations, and SEGA's options.
        round_trips: the sources as they are, by way of the autoencoder: a check for shortcuts, since nothing is OOD.
        stop_step: one for all images, instead of a random one each.
        captions: OOD prompts are free text that names two labels, instead of a template with one.
        scheduler: a name of `checkpoint.SCHEDULERS`.
        batch_size: images made together; ways that work by groups of equal labels need many.
        is_early: by the diffusion model whose training was stopped early.
        thresholding: each estimate of the clean latents is brought back by dynamic thresholding.
    """

    changes: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    round_trips: bool = False
    stop_step: int | None = None
    captions: bool = False
    scheduler: str = "ddim"
    batch_size: int = BATCH_SIZE
    is_early: bool = False
    thresholding: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether `sona generate` makes it."""
        return not self.options and not self.round_trips and self.stop_step is None


class Thresholding(UniPCMultistepScheduler):
    """Dynamic thresholding (Saharia et al. 2022, 2.3) for latents, with `LATENT_RANGE` in place of the 1 of pixels."""

    def _threshold_sample(self, sample: torch.Tensor) -> torch.Tensor:
        return LATENT_RANGE * super()._threshold_sample(sample / LATENT_RANGE)


class VariantMaker(OutlierMaker):
    """Makes planned outliers by another call of the pipeline, or none."""

    def __init__(self, pipe: SONAPipeline, plan, recipe: Recipe):
        super().__init__(pipe, plan, strict=True)
        self.recipe = recipe

    @torch.no_grad()
    def denoise(self, work: Work, steps: int | None = None) -> Work:
        if work.items and self.recipe.round_trips:
            work.outlier_latents = work.source_latents
        elif work.items:
            options = self.recipe.options
            work.outlier_latents = self.denoised(work.items, work.source_latents, work.generators, **options)
        return work


def make_set(
    recipe: Recipe,
    images: ImageSet,
    load: Callable[[str], SONAPipeline],
    folder: Path,
    settings: GenerationSettings,
) -> None:
    """Make the set that a recipe describes, or what is missing of it; `seconds.txt` says how long that took."""
    if (folder / SECONDS).exists():
        return
    started = time.monotonic()
    settings, pipe = replace(settings, **recipe.changes), load(recipe.scheduler)
    if recipe.thresholding:
        pipe.scheduler = Thresholding.from_config(pipe.scheduler.config, thresholding=True, sample_max_value=math.inf)
    if recipe.captions:
        labels = settings.ood_labels
        pairs = zip(labels, labels[1:] + labels[:1])
        settings = replace(settings, ood_labels=tuple(f"a {a} and a {b}" for a, b in pairs), ood_prompt="{}")
    if recipe.is_plain:
        generate_outliers(images, pipe, folder, settings, OutputSettings(batch_size=recipe.batch_size, strict=True))
    else:
        _make_variant(recipe, images, pipe, folder, settings)
    write_text(folder / SECONDS, f"{time.monotonic() - started:.0f}\n")


def _make_variant(recipe, images: ImageSet, pipe: SONAPipeline, folder: Path, settings: GenerationSettings) -> None:
    plan = make_plan(images, pipe, settings)
    if recipe.stop_step is not None:
        plan = replace(plan, stop_steps=np.full_like(plan.stop_steps, recipe.stop_step))
    maker, writer = VariantMaker(pipe, plan, recipe), OutlierWriter(folder, "folder")
    with only_run(folder), Track(folder.name, len(plan)) as track:
        recorded = {
            "stop_step": recipe.stop_step,
            "scheduler": recipe.scheduler,
            "format": "folder",
            "reconstructions": True,
        }
        settle_settings(folder / "settings.json", asdict(settings) | recorded)
        hashes = writer.done(reconstructions=True)
        batches = [b for b in plan.batches(recipe.batch_size) if not hashes.issuperset(plan.hashes[b.indices].tolist())]
        track.reach(len(plan) - sum(len(batch.indices) for batch in batches))
        for count in make_batches(maker, writer, batches):
            track.advance(count)
        writer.finish()
