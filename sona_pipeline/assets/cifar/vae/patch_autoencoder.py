"""A linear autoencoder of image patches, for latent diffusion where there is no time to train a deep one."""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import AutoencoderMixin, DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import nn
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

LOG_VARIANCE = -30.0


class PatchAutoencoder(ModelMixin, ConfigMixin, AutoencoderMixin):
    """Principal components of square patches, scaled; encoding and decoding are a 1 x 1 convolution each.

    Stands where a pipeline of Stable Diffusion has its `AutoencoderKL`. Of a pipeline that was saved with this file in
    the folder `vae/`, diffusers finds the class by itself.

    Args:
        in_channels: channels of the images.
        latent_channels: components that are kept of a patch, at most `in_channels` x side x side.
        block_out_channels: as in `AutoencoderKL`; only its length n counts, the side of a patch is 2^(n - 1) pixels.
        scaling_factor: of the latents, for unit variance over all channels; whitened ones have it by themselves.
        sample_size: side in pixels of the images it was made for, as some pipelines want to know.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        latent_channels: int = 12,
        block_out_channels: tuple[int, ...] = (1, 1, 1),
        scaling_factor: float = 1.0,
        sample_size: int | None = None,
    ):
        super().__init__()
        self.side = 2 ** (len(block_out_channels) - 1)
        values = in_channels * self.side**2
        if not 1 <= latent_channels <= values:
            raise ValueError(f"`latent_channels` is {latent_channels}, but has to be from 1 to {values}")
        self.encoder = nn.Conv2d(values, latent_channels, 1)
        self.decoder = nn.Conv2d(latent_channels, values, 1)

    @torch.no_grad()
    def fit(self, images: torch.Tensor, whitening: float = 1.0) -> None:
        """Take the first principal components of the patches of images `[N, C, H, W]` in [-1, 1].

        A component is divided by its standard deviation to the power of `whitening`: 1 gives all of them unit variance;
        with less, noise hides fine components before coarse ones, and errors of coarse ones weigh more in training.
        """
        patches = pixel_unshuffle(images, self.side).transpose(0, 1).flatten(1).double()
        mean = patches.mean(dim=1)
        variances, components = torch.linalg.eigh(torch.cov(patches))
        scales = variances[-self.config.latent_channels :].flip(0).sqrt()[:, None] ** whitening
        rows = components[:, -self.config.latent_channels :].flip(1).T
        self.encoder.weight.copy_((rows / scales)[..., None, None])
        self.encoder.bias.copy_(-(rows / scales) @ mean)
        self.decoder.weight.copy_((rows * scales).T[..., None, None])
        self.decoder.bias.copy_(mean)

    def encode(self, x: torch.Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple:
        """Latents of images `[B, C, H, W]` in [-1, 1], as a distribution of hardly any width."""
        mean = self.encoder(pixel_unshuffle(x, self.side))
        posterior = DiagonalGaussianDistribution(torch.cat([mean, torch.full_like(mean, LOG_VARIANCE)], dim=1))
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(
        self, z: torch.Tensor, return_dict: bool = True, generator: torch.Generator | None = None
    ) -> DecoderOutput | tuple:
        """Images in [-1, 1], and slightly beyond, of latents `[B, L, H, W]`; nothing is random here."""
        sample = pixel_shuffle(self.decoder(z), self.side)
        return DecoderOutput(sample=sample) if return_dict else (sample,)
