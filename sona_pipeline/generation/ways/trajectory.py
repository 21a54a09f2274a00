"""Steps of DDIM and DDPM between the levels of a schedule, forwards and backwards, in units of noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from diffusers import DDIMScheduler

from sona_pipeline.pipelines.core import SONAMixin


class Level(NamedTuple):
    """A level of the schedule: time step of the UNet, and share of the signal in the variance there and one lower."""

    t: int
    signal: float
    below: float


def levels(pipe: SONAMixin, steps: int) -> list[Level]:
    """The levels of a schedule of `steps`, from the noisiest to the last, below which there is the image itself."""
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(steps)
    times = scheduler.timesteps.tolist()
    signal = [float(scheduler.alphas_cumprod[t]) for t in times]
    return [Level(*level) for level in zip(times, signal, [*signal[1:], 1.0])]


@torch.no_grad()
def predicted_noise(
    pipe: SONAMixin, latents: torch.Tensor, level: Level, prompts: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """The noise in latents `[B, c, h, w]` as the UNet sees it by each of the prompts `[B, L, D]`, in one call."""
    rows = torch.cat([latents] * len(prompts)).to(pipe.unet.dtype)
    states = torch.cat(list(prompts)).to(pipe.unet.dtype)
    found = pipe.unet(rows, level.t, encoder_hidden_states=states, return_dict=False)[0].to(latents.dtype)
    return tuple(_in_noise_units(pipe, one, latents, level) for one in found.chunk(len(prompts)))


def _in_noise_units(pipe: SONAMixin, found: torch.Tensor, latents: torch.Tensor, level: Level) -> torch.Tensor:
    kind = pipe.scheduler.config.prediction_type
    if kind == "v_prediction":
        return level.signal**0.5 * found + (1 - level.signal) ** 0.5 * latents
    if kind == "sample":
        return (latents - level.signal**0.5 * found) / (1 - level.signal) ** 0.5
    return found


def lower(latents: torch.Tensor, noise: torch.Tensor, level: Level, eta: float = 0.0) -> torch.Tensor:
    """The mean of the latents one level lower; eta 0 is DDIM, and eta 1 DDPM, which adds new noise to it."""
    source = (latents - (1 - level.signal) ** 0.5 * noise) / level.signal**0.5
    variance = eta**2 * (1 - level.below) / (1 - level.signal) * (1 - level.signal / level.below)
    return level.below**0.5 * source + max(0.0, 1 - level.below - variance) ** 0.5 * noise


def higher(latents: torch.Tensor, noise: torch.Tensor, level: Level) -> torch.Tensor:
    """Latents at a level from those one lower: the inverse of DDIM's step, with the noise seen at the lower level."""
    source = (latents - (1 - level.below) ** 0.5 * noise) / level.below**0.5
    return level.signal**0.5 * source + (1 - level.signal) ** 0.5 * noise
