"""DiffEdit as diffusers ships it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler, StableDiffusionDiffEditPipeline

from sona_pipeline.generation.ways.base import Way, in_groups, peer, taking_float32

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
        """By stop steps, but for the masks: those of a call come from one generator."""
        inverse = DDIMInverseScheduler.from_config(self.pipe.scheduler.config)
        pipe = peer(StableDiffusionDiffEditPipeline, self.pipe, inverse_scheduler=inverse)
        pipe.scheduler = DDIMScheduler.from_config(self.pipe.scheduler.config)  # whose levels the inversion has
        pairs = list(zip(*maker.prompts_of(work.items)))

        def edit(stop_step: int, members: list[int]) -> torch.Tensor:
            return self._edited(pipe, work, stop_step, {k: pairs[k] for k in members})

        with taking_float32(self.pipe.unet):
            return in_groups(work, [item.stop_step for item in work.items], edit)

    def _edited(self, pipe: Any, work: Work, stop_step: int, prompts: dict[int, tuple[str, str]]) -> torch.Tensor:
        """From the latents that every way starts from, where the pipeline would encode the images anew."""
        members, pixels, latents = list(prompts), work.pixels / 2 + 0.5, work.source_latents
        masks = []
        for k, (source, target) in prompts.items():
            pipe.prepare_image_latents = lambda image, count, *_, k=k: latents[k : k + 1].expand(count, -1, -1, -1)
            drawn = {"num_maps_per_mask": MAPS, "generator": work.generators[k]}
            masks.append(pipe.generate_mask(pixels[k : k + 1], target, source_prompt=source, **drawn))
        pipe.prepare_image_latents = lambda *_: latents[members]
        steps, (sources, targets) = self.settings.num_inference_steps, map(list, zip(*prompts.values()))
        schedule = {"num_inference_steps": steps, "inpaint_strength": min(1.0, (stop_step + 0.5) / steps)}
        inverted = pipe.invert(sources, pixels[members], **schedule).latents
        return pipe(
            targets,
            mask_image=np.concatenate(masks),
            image_latents=inverted,
            negative_prompt=sources,
            output_type="latent",
            **schedule,
        ).images
