"""What differs between families of models, in one place: a family says what is its own, and leaves the rest."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from diffusers.image_processor import VaeImageProcessor

from sona_pipeline.pipelines.batch import Conditions
from sona_pipeline.pipelines.schedules import Schedule, shift_of_size

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as Base
else:
    Base = object  # a file that diffusers loads may have one subclass of its pipelines only


class Family(Base):
    """A family of models: its components, and how they are called.

    What has no default is a family's own to say. The others are as in Stable Diffusion: an `AutoencoderKL`, latents
    `[B, C, H, W]` that the denoiser takes as they are, and schedules of which the number of steps is told, and the
    shift for the size of the images where the scheduler wants one.
    """

    title = ""
    """What its models are called."""
    checkpoints: tuple[str, ...] = ()
    """Names of the pipelines of diffusers whose checkpoints it takes."""
    file_parts: Mapping[str, str] = {}
    """How weights of single files are named at the beginning, by what they are of; empty if there are no such files."""
    vae: Any
    scheduler: Any
    image_processor: VaeImageProcessor
    vae_scale_factor: int
    patch_size = 1
    """Latents a side that the denoiser takes together."""
    largest_side: int | None = None
    """Patches a side that the denoiser has positions for, if their number is limited."""
    draws_latents = True
    """Whether latents are drawn from what the autoencoder gives, instead of its mode."""

    @property
    def denoiser(self) -> Any:
        """The module that predicts noise, velocity or sample."""
        raise NotImplementedError

    @property
    def image_size(self) -> int:
        """Side in pixels of the images that the denoiser was made for."""
        raise NotImplementedError

    def check_parts(self) -> None:
        """Raise ValueError, naming the part, unless the components make a model of the family."""
        raise NotImplementedError

    def denoise(self, rows: torch.Tensor, t: torch.Tensor, conditions: Conditions, attention: dict | None) -> Any:
        """What the denoiser predicts for rows of latents, both `[R, C, H, W]`, with their conditions `[R, ...]`.

        `attention` is passed on to the attention processors.
        """
        raise NotImplementedError

    def sharing(self, rows: int) -> AbstractContextManager:
        """What lets a call of the denoiser compute once what is alike in the three rows of an image."""
        return nullcontext()

    def schedule_of(self, steps: int, latents: torch.Size, timesteps: Any = None, sigmas: Any = None) -> Schedule:
        """The full schedule for latents of a shape `[B, C, H, W]`."""
        own = [None if one is None else tuple(map(float, one)) for one in (timesteps, sigmas)]
        tokens = (latents[-2] // self.patch_size) * (latents[-1] // self.patch_size)
        return Schedule(steps, own[0], own[1], mu=shift_of_size(self.scheduler, tokens))

    @property
    def text_encoders(self) -> list[Any]:
        """The text encoders that are there."""
        found = [part for name, part in self.components.items() if name.startswith("text_encoder")]
        return [encoder for encoder in found if encoder is not None]

    @property
    def condition_shapes(self) -> dict[str, tuple[int | None, ...]]:
        """Names of the conditions that `encode_texts` gives, and the shape of each; None stands for their length."""
        raise NotImplementedError

    @property
    def prompt_length(self) -> int:
        """Tokens of a prompt that are read."""
        raise NotImplementedError

    @property
    def encoded_length(self) -> int:
        """Length of the conditions that `encode_texts` gives."""
        return self.prompt_length

    def token_ids(self, texts: list[str]) -> list[list[int]]:
        """The tokens of texts, all of them, for the text encoder that reads most."""
        raise NotImplementedError

    def encode_texts(self, texts: list[str], device: torch.device, clip_skip: int | None = None) -> Conditions:
        """What N texts become for the denoiser, by name: tensors `[N, ...]` whose shapes are the same for any text."""
        raise NotImplementedError

    def trimmed(self, conditions: Conditions) -> Conditions:
        """Conditions `[P, B, ...]` without what is padding in all of them."""
        return conditions

    @property
    def image_channels(self) -> int:
        """Channels of the images."""
        return self.vae.config.in_channels

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return self.vae.config.latent_channels

    @property
    def latent_side(self) -> int:
        """Pixels a side that one latent stands for."""
        return self.vae_scale_factor

    def scaled(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents of the autoencoder as the denoiser knows them, `[B, C, H, W]`."""
        return (latents - (self.vae.config.get("shift_factor") or 0.0)) * self.vae.config.scaling_factor

    def unscaled(self, latents: torch.Tensor) -> torch.Tensor:
        """The opposite of `scaled`."""
        return latents / self.vae.config.scaling_factor + (self.vae.config.get("shift_factor") or 0.0)

    @property
    def vae_side(self) -> int:
        """Pixels a side that one latent of the autoencoder stands for."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def vae_encode(self, vae: Any, pixels: torch.Tensor) -> Any:
        """What an autoencoder makes of images `[B, C, H, W]` in [-1, 1]."""
        return vae.encode(pixels)

    def vae_decode(self, vae: Any, latents: torch.Tensor) -> torch.Tensor:
        """Images `[B, C, H, W]` in [-1, 1] of latents of the autoencoder."""
        return vae.decode(latents, return_dict=False)[0]

    def blanked(self, images: torch.Tensor) -> tuple[torch.Tensor, list[bool] | None]:
        """Images without harmful ones, and a flag an image, if the family has a safety checker."""
        return images, None
