"""Images drawn from prompts alone, by an embedded model: where there are no photographs to show."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from sona_pipeline.generation.checkpoint import load_pipeline

STEPS, SCALE, BATCH = 12, 3.0, 64
"""UniPC steps, guidance scale, and images that are drawn together."""


def draw(model: str, prompts: Sequence[str], seed: int = 0) -> list[Image.Image]:
    """Images by classifier-free guidance, as diffusers' `StableDiffusionPipeline` makes them, on the CPU.

    Args:
        model: name of an embedded model, as `load_pipeline` takes it.
        prompts: one an image.
        seed: that all images follow from, in batches of 64.
    """
    pipe = load_pipeline(model, "cpu", dtype="float32", scheduler="unipc")
    drawing = StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
    drawing.set_progress_bar_config(disable=True)
    drawn: list[Image.Image] = []
    generator = torch.Generator().manual_seed(seed)
    for start in range(0, len(prompts), BATCH):
        some = list(prompts[start : start + BATCH])
        drawn += drawing(some, num_inference_steps=STEPS, guidance_scale=SCALE, generator=generator).images
    return drawn
