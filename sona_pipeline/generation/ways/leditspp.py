"""LEDITS++ as diffusers ships it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from diffusers import DPMSolverMultistepScheduler, LEditsPPPipelineStableDiffusion

from sona_pipeline.generation.ways.base import Way, in_groups, peer, taking_float32
from sona_pipeline.pipelines.core import SONAMixin

if TYPE_CHECKING:
    from sona_pipeline.generation.make import OutlierMaker, Work
    from sona_pipeline.generation.settings import GenerationSettings

CHANNELS, DIVISOR = 4, 32
"""Of the latents, and of the sides in pixels."""


class LEditsPP(Way):
    """LEDITS++ (Brack et al. 2024): the source inverted, then the ID meaning removed and the OOD one added."""

    needs_unet = True

    def __init__(self, pipe: SONAMixin, settings: GenerationSettings):
        super().__init__(pipe, settings)
        if (found := pipe.vae.config.latent_channels) != CHANNELS:
            raise ValueError(
                f"the way 'leditspp' is made for latents of {CHANNELS} channels, and this model has {found}: take"
                " 'ledits', which goes with any number"
            )
        if (side := settings.size or pipe.image_size) % DIVISOR:
            raise ValueError(
                f"the way 'leditspp' takes sides that {DIVISOR} divides, and not {side}: give another size"
            )

    @classmethod
    def rows(cls, stop_step: int, steps: int) -> int:
        """One a step of the inversion, and three of the edit."""
        return 4 * stop_step

    def __call__(self, maker: OutlierMaker, work: Work) -> torch.Tensor:
        """A call for each pair of labels and stop step."""
        pipe, steps = peer(LEditsPPPipelineStableDiffusion, maker.pipe), maker.settings.num_inference_steps
        processors = self.pipe.unet.attn_processors  # which the pipeline replaces by its own
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(
            pipe.scheduler.config, algorithm_type="sde-dpmsolver++", solver_order=2
        )

        def edit(group: tuple[str, str, int], members: list[int]) -> torch.Tensor:
            images, _ = maker.pipe.decode(work.source_latents[members], "pil")
            *labels, stop_step = group
            generators = [work.generators[k] for k in members]
            pipe.invert(images, num_inversion_steps=stop_step, skip=steps / stop_step - 1, generator=generators)
            return pipe(
                editing_prompt=labels,
                reverse_editing_direction=[True, False],
                use_intersect_mask=False,
                generator=generators,
                output_type="latent",
            ).images

        groups = list(zip(*maker.prompts_of(work.items), (item.stop_step for item in work.items)))
        with taking_float32(self.pipe.unet):
            edited = in_groups(work, groups, edit)
        self.pipe.unet.set_attn_processor(processors)
        return edited
