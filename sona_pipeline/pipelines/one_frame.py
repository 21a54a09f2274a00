"""Autoencoders of films, to which an image is a film of one frame."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput

from sona_pipeline.pipelines.family import Family


class OneFrameMixin(Family):
    """Latents of images by such an autoencoder, each channel scaled by itself."""

    @property
    def image_channels(self) -> int:
        """Channels of the images."""
        return self.vae.config.input_channels

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return self.vae.config.z_dim

    @property
    def vae_side(self) -> int:
        """Pixels a side that one latent stands for."""
        return 2 ** len(self.vae.config.temperal_downsample)

    def scaled(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents with the mean 0 and the deviation 1 in each channel."""
        mean, deviation = self._moments(latents)
        return (latents - mean) / deviation

    def unscaled(self, latents: torch.Tensor) -> torch.Tensor:
        """The opposite of `scaled`."""
        mean, deviation = self._moments(latents)
        return latents * deviation + mean

    def _moments(self, like: torch.Tensor) -> list[torch.Tensor]:
        config = self.vae.config
        return [like.new_tensor(values)[:, None, None] for values in (config.latents_mean, config.latents_std)]

    def vae_encode(self, vae: Any, pixels: torch.Tensor) -> Any:
        """The latents of the frame."""
        found = vae.encode(pixels.unsqueeze(2)).latent_dist.parameters.squeeze(2)
        return AutoencoderKLOutput(latent_dist=DiagonalGaussianDistribution(found))

    def vae_decode(self, vae: Any, latents: torch.Tensor) -> torch.Tensor:
        """The frame of latents."""
        return vae.decode(latents.unsqueeze(2), return_dict=False)[0].squeeze(2)
