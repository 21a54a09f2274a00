"""DiffEdit as diffusers ships it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, StableDiffusionDiffEditPipeline

from sona_pipeline.generation.ways.base import Way, peer, taking_float32

if TYPE_CHECKING:
    from sona_pipeline.generation.make import OutlierMaker, Work

MAPS = 10
"""Noise maps that the mask is averaged over."""


class DiffEdit(Way):
    """DiffEdit (Couairon et al. 2023): a mask from two prompts, DDIM inversion, and the OOD prompt within the mask."""

    needs_unet = True

    @classmethod
    def rows(cls, stop_step: int, steps: int) -> int:
        """Four for each noise map, two a step of the inversion and two of the edit."""
        return 4 * MAPS + 4 * stop_step

    def __call__(self, maker: OutlierMaker, work: Work) -> torch.Tensor:
        """Image by image: the masks of a call come from one generator."""
        inverse = DDIMInverseScheduler.from_config(self.pipe.scheduler.config)
        pipe = peer(StableDiffusionDiffEditPipeline, self.pipe, inverse_scheduler=inverse)
        pipe.scheduler = DDIMScheduler.from_config(self.pipe.scheduler.config)  # whose levels the inversion has
        prompts = zip(*maker.prompts_of(work.items))
        with taking_float32(self.pipe.unet):
            return torch.cat([self._edited(pipe, work, k, *pair) for k, pair in enumerate(prompts)])

    def _edited(self, pipe: Any, work: Work, k: int, source: str, target: str) -> torch.Tensor:
        """From the latents that every way starts from, where the pipeline would encode the image anew."""
        image, latents = work.pixels[k : k + 1] / 2 + 0.5, work.source_latents[k : k + 1]
        pipe.prepare_image_latents = lambda image, count, *_: latents.expand(count, -1, -1, -1)
        steps, generator = self.settings.num_inference_steps, work.generators[k]
        schedule = {
            "num_inference_steps": steps,
            "inpaint_strength": min(1.0, (work.items[k].stop_step + 0.5) / steps),
            "generator": generator,
        }
        mask = pipe.generate_mask(image, target, source_prompt=source, num_maps_per_mask=MAPS, generator=generator)
        inverted = pipe.invert(source, image, **schedule).latents
        return pipe(
            target,
            mask_image=mask,
            image_latents=inverted,
            negative_prompt=source,
            output_type="latent",
            **schedule,
        ).images
