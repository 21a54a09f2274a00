"""Images on their way to latents and back, by the autoencoder of a family."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers.image_processor import PipelineImageInput, VaeImageProcessor
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.utils import logging

from sona_pipeline.pipelines.arguments import Generators
from sona_pipeline.pipelines.family import Family

logger = logging.get_logger(__name__)
_VAE_IS_CALLED = threading.Lock()


class ImagesMixin(Family):
    """Images and latents of a pipeline."""

    def _set_up_images(self, vae: Any) -> None:
        """The processor of the images that an autoencoder takes; of the usual ones where it comes later."""
        is_grey = vae is not None and self.image_channels == 1
        self.vae_scale_factor = self.vae_side if vae is not None else 8
        self.image_processor = VaeImageProcessor(
            do_resize=False,
            vae_scale_factor=self.vae_scale_factor,
            vae_latent_channels=self.latent_channels if vae is not None else 4,
            do_convert_rgb=not is_grey,
            do_convert_grayscale=is_grey,
        )

    @property
    def latent_dtype(self) -> torch.dtype:
        """Of latents, noise, guidance and steps: that of the denoiser, or float32 where it is a half one.

        A half dtype would round them anew at every step.
        """
        return torch.float64 if self.denoiser.dtype == torch.float64 else torch.float32

    def preprocess_image(self, image: PipelineImageInput) -> torch.Tensor:
        """Images of any accepted form as a tensor `[B, C, H, W]` in [-1, 1], or latents as they are.

        Raises ValueError for no image, NaN, values out of range, and sizes, modes or channels the VAE cannot take.
        """
        images = list(image) if isinstance(image, (list, tuple)) else [image]
        kinds = (PIL.Image.Image, np.ndarray, torch.Tensor)
        if not any(all(isinstance(one, kind) for one in images) for kind in kinds):
            found = sorted({type(one).__name__ for one in images})
            raise TypeError(f"`image` is made of {found}: give PIL images, arrays or tensors, all of one kind.")
        if not images or any(len(one) == 0 for one in images if not isinstance(one, PIL.Image.Image)):
            raise ValueError("`image` is empty: give at least one image.")
        for k, one in enumerate(images):
            size, first = (x.size if isinstance(x, PIL.Image.Image) else tuple(x.shape) for x in (one, images[0]))
            if size != first:
                raise ValueError(f"Image {k} has the size {size} and image 0 {first}: bring all to one size.")
            if isinstance(one, PIL.Image.Image) and (one.mode == "F" or one.mode.startswith("I")):
                raise ValueError(f"Image {k} has the mode {one.mode!r}: scale it to 8 bits (mode 'L' or 'RGB') first.")
            is_latents = isinstance(one, torch.Tensor) and one.shape[-3:-2] == (self.latent_channels,)
            if not isinstance(one, PIL.Image.Image) and not is_latents and one.min() < 0:  # else taken as [-1, 1]
                raise ValueError("Image values go below 0: scale arrays and tensors to [0, 1].")
        tensor = self.image_processor.preprocess(images if isinstance(image, tuple) else image)

        channels, latent_channels = self.image_channels, self.latent_channels
        is_array = isinstance(images[0], np.ndarray)
        if tensor.shape[1] != channels and (is_array or tensor.shape[1] != latent_channels):
            raise ValueError(
                f"`image` has {tensor.shape[1]} channels; the VAE takes {channels}, and tensors of latents have"
                f" {latent_channels}."
            )
        finite = tensor.isfinite().flatten(1).all(dim=1)
        if not finite.all():
            raise ValueError(f"Image {finite.tolist().index(False)} holds NaN or infinite values.")
        is_image = tensor.shape[1] == channels and channels != latent_channels
        what, factor = ("Images", self.latent_side * self.patch_size) if is_image else ("Latents", self.patch_size)
        height, width = tensor.shape[-2:]
        if height % factor or width % factor or not height or not width:
            sides = f"{width} x {height} pixels" if is_image else f"{width} x {height}"
            raise ValueError(f"{what} are {sides}, but the model takes multiples of {factor}: resize them.")
        if self.largest_side and max(height, width) > (most := self.largest_side * factor):
            raise ValueError(f"{what} are {width} x {height}, but the model takes at most {most} a side: resize them.")
        if is_image and tensor.abs().max() > 1:
            raise ValueError("Image values go beyond 1: scale arrays and tensors to [0, 1].")
        return tensor

    def encode_image(
        self, image: torch.Tensor, device: torch.device, generator: Generators, sample: bool = True
    ) -> torch.Tensor:
        """Scaled latents z_0 of images `[B, C, H, W]` in [-1, 1], in `latent_dtype`; latents are passed through.

        They are drawn from what the VAE gives, or are its mode. Raises FloatingPointError if they are not finite.
        """
        dtype = self.latent_dtype
        if image.shape[1] == self.latent_channels:
            return image.to(device=device, dtype=dtype)
        encoded: Any = None

        def encode(vae: Any) -> torch.Tensor:
            nonlocal encoded
            encoded = self.vae_encode(vae, image.to(device=device, dtype=vae.dtype))
            return encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents

        latents = self._finite_from_vae(encode)
        if isinstance(latent_dist := getattr(encoded, "latent_dist", None), DiagonalGaussianDistribution):
            latent_dist = DiagonalGaussianDistribution(latent_dist.parameters.to(dtype), latent_dist.deterministic)
        if sample and self.draws_latents and latent_dist is not None:
            latents = latent_dist.sample(generator)
        return self.scaled(latents.to(dtype))

    def _finite_from_vae(self, run: Callable[[Any], torch.Tensor]) -> torch.Tensor:
        """What `run` makes of the VAE, `[B, ...]`.

        A VAE that overflows in float16 goes on in float32 from then on if its configuration has `force_upcast`.

        Raises:
            FloatingPointError: it gives NaN or infinite values even so.
        """
        with _VAE_IS_CALLED:
            found = run(self.vae)
        if found.isfinite().all():
            return found
        dtype = self.vae.dtype
        if dtype == torch.float16 and self.vae.config.get("force_upcast"):
            logger.warning("The VAE overflows in float16: it computes in float32 from now on.")
            with _VAE_IS_CALLED:
                self.vae.to(torch.float32)
                found, dtype = run(self.vae), torch.float32
        bad = (~found.isfinite()).flatten(1).any(dim=1).tolist()
        if True in bad:
            way = (
                "its weights or the latents are not good"
                if dtype == torch.float32
                else ("compute in bfloat16 or float32, or let the VAE alone do so, by `pipe.vae.to(torch.float32)`")
            )
            raise FloatingPointError(
                f"The VAE gives NaN or infinite values for image {bad.index(True)} in {str(dtype)[6:]}: {way}."
            )
        return found

    def decode(self, latents: torch.Tensor, output_type: str) -> tuple[Any, list[bool] | None]:
        """Images of scaled latents `[B, C, H, W]`, and the safety checker's flags if there is one.

        Raises FloatingPointError for pixels that are not finite.
        """
        if output_type == "latent":
            return latents, None
        latents = self.unscaled(latents)
        image = self._finite_from_vae(lambda vae: self.vae_decode(vae, latents.to(vae.dtype)))
        image, flags = self.blanked(image)
        denormalize = [not flag for flag in flags] if flags is not None else [True] * len(image)
        return self.image_processor.postprocess(image, output_type=output_type, do_denormalize=denormalize), flags
