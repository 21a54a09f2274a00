"""SEGA as diffusers ships it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from diffusers import SemanticStableDiffusionPipeline

from sona_pipeline.generation.ways.base import DRAWING_SCALE, WARM_UP, Way, in_groups, peer, taking_float32

if TYPE_CHECKING:
    from sona_pipeline.generation.make import OutlierMaker, Work


class Sega(Way):
    """SEGA (Brack et al. 2023): drawn from noise by the ID prompt, its meaning removed, the OOD one added."""

    needs_unet = True
    uses_stop_step = False
    shares_labels = True

    @classmethod
    def rows(cls, stop_step: int, steps: int) -> int:
        """Four a step: the empty prompt, the ID prompt, and two concepts."""
        return 4 * steps

    def __call__(self, maker: OutlierMaker, work: Work) -> torch.Tensor:
        """All images of a call share their concepts, so calls are by pairs of labels."""
        pipe, steps = peer(SemanticStableDiffusionPipeline, maker.pipe), maker.settings.num_inference_steps

        def draw(pair: tuple[str, str], members: list[int]) -> torch.Tensor:
            return pipe(
                [pair[0]] * len(members),
                height=maker.size,
                width=maker.size,
                editing_prompt=list(pair),
                reverse_editing_direction=[True, False],
                edit_warmup_steps=round(WARM_UP * steps),
                num_inference_steps=steps,
                guidance_scale=DRAWING_SCALE,
                generator=[work.generators[k] for k in members],
                output_type="latent",
            ).images

        with taking_float32(self.pipe.unet):
            return in_groups(work, list(zip(*maker.prompts_of(work.items))), draw)
