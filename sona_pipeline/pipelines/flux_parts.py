"""What the families of FLUX have in common."""

from __future__ import annotations

from typing import Any

import torch

from sona_pipeline.pipelines.core import SONAMixin
from sona_pipeline.pipelines.prompts import Embeds, Prompts
from sona_pipeline.pipelines.schedules import check_scheduler_kind

Widths = dict[str, tuple[Any, str, int]]
"""By setting of the transformer: a text encoder, the setting with its width, and how many such widths are needed."""


class FluxMixin(SONAMixin):
    """A pipeline with a transformer that reads tokens of 2 x 2 latents."""

    transformer: Any

    @property
    def denoiser(self) -> Any:
        """The transformer."""
        return self.transformer

    @property
    def image_size(self) -> int:
        """Side in pixels of the images that FLUX is made for: 1024."""
        return 128 * self.vae_scale_factor

    def check_prompts(self, batch_size: int, prompts: Prompts, embeds: Embeds) -> None:
        """Raise ValueError for prompts without a text encoder or tokenizer, too."""
        readers = [name for name in self.components if name.startswith(("text_encoder", "tokenizer"))]
        missing = [name for name in readers if getattr(self, name) is None]
        if missing and any(given is None for given in embeds.values()):
            raise ValueError(
                f"`{missing[0]}` is None, but prompts need it: load it, or give `id_prompt_embeds`, `ood_prompt_embeds`"
                " and `uncond_prompt_embeds`."
            )
        super().check_prompts(batch_size, prompts, embeds)

    def check_flux(self, widths: Widths, good: str, own: str = "guidance_embeds") -> None:
        """Raise ValueError, naming the part, unless the parts that are there go together and take text and noise only.

        `good` is the model to take instead, and `own` a setting that transformers of its kind have, and others do not.
        """
        if self.scheduler is not None:
            check_scheduler_kind(self.scheduler, is_flow=True)
        for name in ("in_channels", "latent_channels", "block_out_channels"):
            if self.vae is not None and not self.vae.config.get(name):
                raise ValueError(f"`vae` is a {type(self.vae).__name__} without {name!r}: take that of {good}.")
        if self.transformer is None:
            return
        config = self.transformer.config
        if missing := [name for name in ("in_channels", own, *widths) if name not in config]:
            raise ValueError(
                f"`transformer` is a {type(self.transformer).__name__} without {missing[0]!r}: take {good}."
            )
        given = config.get("out_channels") or config.in_channels
        if config.in_channels != given:
            raise ValueError(
                f"The transformer takes {config.in_channels} channels and gives {given}: it is made for images beside"
                f" the noise, too (fill, canny or depth), which SONA does not give; take {good}."
            )
        if self.vae is not None and 4 * self.vae.config.latent_channels != config.in_channels:
            raise ValueError(
                f"The VAE makes latents of {self.vae.config.latent_channels} channels and the transformer takes"
                f" {config.in_channels} for 2 x 2 of them: take both from one checkpoint of {good}."
            )
        for name, (encoder, side, times) in widths.items():
            width = config[name] if encoder is None else times * getattr(encoder.config, side, 0)
            if width != config[name]:
                raise ValueError(
                    f"The {type(encoder).__name__} gives embeddings of width {width} and the transformer takes"
                    f" {config[name]}: take both from one checkpoint of {good}."
                )


def check_no_skip(clip_skip: int | None, title: str) -> None:
    """Raise ValueError for layers to skip in models of a title."""
    if clip_skip is not None:
        raise ValueError(f"`clip_skip` is {clip_skip}, but {title} has fixed layers of text encoders: leave it out.")


def image_positions(height: int, width: int, device: torch.device) -> torch.Tensor:
    """Positions (0, y, x) `[H W, 3]` of tokens, row by row."""
    return torch.cartesian_prod(*(torch.arange(side, device=device) for side in (1, height, width)))
