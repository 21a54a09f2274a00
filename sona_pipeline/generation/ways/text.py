"""Images drawn from noise by a prompt alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from sona_pipeline.generation.ways.base import DRAWING_SCALE, Way

if TYPE_CHECKING:
    from sona_pipeline.generation.make import OutlierMaker, Work


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
def drawn(maker: OutlierMaker, embeds: torch.Tensor, generators: Sequence[torch.Generator]) -> torch.Tensor:
    """Latents, in float32, of images drawn from noise by prompt embeddings `[B, L, D]`."""
    pipe, steps = maker.pipe, maker.settings.num_inference_steps
    side = maker.size // pipe.vae_scale_factor
    shape = pipe.vae.config.latent_channels, side, side
    timesteps = pipe.set_timesteps(steps, pipe.device, begin=0)
    latents = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
    latents = latents.to(pipe.device, pipe.latent_dtype) * pipe.scheduler.init_noise_sigma
    prompts = torch.cat([maker.prompts([""]).expand_as(embeds), embeds]).to(pipe.unet.dtype)
    for t in timesteps:
        rows = pipe.scheduler.scale_model_input(torch.cat([latents] * 2), t).to(pipe.unet.dtype)
        found = pipe.unet(rows, t, encoder_hidden_states=prompts, return_dict=False)[0].to(latents.dtype)
        plain, wanted = found.chunk(2)
        latents = pipe.scheduler.step(plain + DRAWING_SCALE * (wanted - plain), t, latents, return_dict=False)[0]
    return latents
