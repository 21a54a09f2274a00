"""Images drawn from noise by a prompt alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from sona_pipeline.generation.ways.base import DRAWING_SCALE, Way

if TYPE_CHECKING:
    from sona_pipeline.generation.make import OutlierMaker, Work
from sona_pipeline.pipelines.batch import Conditions
from sona_pipeline.pipelines.schedules import seen_by_model


class Text(Way):
    """Images of the OOD labels, without the source, by classifier-free guidance of scale 3."""

    uses_stop_step = False
    takes_embeddings = True

    @classmethod
    def rows(cls, stop_step: int, steps: int) -> int:
        """Two a step of the whole schedule."""
        return 2 * steps

    def __call__(self, maker: OutlierMaker, work: Work) -> torch.Tensor:
        """All images of a batch together."""
        return drawn(maker, maker.meanings_of(work.items), work.generators)


class FakeIt(Text):
    """Flawed images of the ID classes (Mirzaei et al. 2023), by a model whose training was stopped early.

    With a model that is trained to the end they are no outliers: take a checkpoint of
    `examples/train_latent_diffusion.py` from early on.
    """

    uses_label = takes_embeddings = False

    def __call__(self, maker: OutlierMaker, work: Work) -> torch.Tensor:
        """Drawn by the prompts of the sources' own classes."""
        return drawn(maker, maker.prompts(maker.prompts_of(work.items)[0]), work.generators)


@torch.no_grad()
def drawn(maker: OutlierMaker, wanted: Conditions, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """Latents, in float32, of images drawn from noise by the conditions `[B, ...]` of prompts."""
    pipe, count = maker.pipe, len(generators)
    shape = pipe.latent_shape(torch.empty(count, pipe.image_channels, maker.size, maker.size, device="meta"))
    timesteps = pipe.schedule_of(maker.settings.num_inference_steps, shape).set(pipe.scheduler, pipe.device, begin=0)
    latents = torch.stack([torch.randn(shape[1:], generator=generator) for generator in generators])
    latents = latents.to(pipe.device, pipe.latent_dtype) * getattr(pipe.scheduler, "init_noise_sigma", 1.0)
    embeds = {"uncond_prompt": maker.prompts([""]), "id_prompt": wanted}
    stacked = pipe.encode_prompts(count, {}, embeds, pipe.device)
    conditions = {name: value.flatten(0, 1) for name, value in stacked.items()}
    for t in timesteps:
        rows = seen_by_model(pipe.scheduler, torch.cat([latents] * 2), t).to(pipe.denoiser.dtype)
        plain, meant = pipe.denoise(rows, t, conditions, None).to(latents.dtype).chunk(2)
        latents = pipe.scheduler.step(plain + DRAWING_SCALE * (meant - plain), t, latents, return_dict=False)[0]
    return latents
