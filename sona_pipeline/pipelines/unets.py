"""UNets of Stable Diffusion: which can be used with which VAE, and what of three rows is alike and computed once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch.utils._pytree import tree_map

from sona_pipeline.pipelines.family import Family
from sona_pipeline.pipelines.text_encoders import prompt_length

SIZE_NUMBERS = 6
"""What UNets of Stable Diffusion XL are told of an image: original size, top and left of a crop, target size."""


class UNetMixin(Family):
    """A family with a UNet, and a CLIP text encoder that reads most."""

    @property
    def denoiser(self) -> Any:
        """The UNet."""
        return self.unet

    @property
    def image_size(self) -> int:
        """Side in pixels of the images that the UNet was made for.

        Raises ValueError where its configuration does not say it, or gives two sides.
        """
        given = self.unet.config.sample_size
        sides = {given} if isinstance(given, int) else set(given or ())
        if len(sides) != 1 or not isinstance(side := sides.pop(), int):
            raise ValueError(
                f"The UNet's configuration has the sample_size {given!r}, which is not the side of a square: give the"
                " size of the images."
            )
        return side * self.vae_scale_factor

    @property
    def prompt_length(self) -> int:
        """See `text_encoders.prompt_length`."""
        return prompt_length(self.tokenizer, self.text_encoder)

    def token_ids(self, texts: list[str]) -> list[list[int]]:
        """The tokens of texts, all of them."""
        return self.tokenizer(self.maybe_convert_prompt(texts, self.tokenizer), verbose=False).input_ids


def before_prompts(unet: UNet2DConditionModel) -> list[torch.nn.Module]:
    """The modules of a UNet that work before its first cross-attention, and so without the prompt.

    None that is compiled, or a part of what is, since hooks break the graph.
    """
    if hasattr(unet, "_orig_mod"):
        return []
    paths: list[list[torch.nn.Module]] = [[unet.conv_in]]
    for block in unet.down_blocks:
        if not getattr(block, "has_cross_attention", False):
            paths.append([block])
            continue
        paths.append([block, block.resnets[0]])
        transformer = next(iter(getattr(block.attentions[0], "transformer_blocks", [])), None)
        if transformer is not None and not transformer.only_cross_attention:
            paths.append([block, block.attentions[0], transformer, transformer.attn1])
        break
    return [path[-1] for path in paths if all(module._compiled_call_impl is None for module in [unet, *path])]


@contextmanager
def computed_once(modules: list[torch.nn.Module], rows: int) -> Iterator[None]:
    """Let this thread's calls of modules compute the first third of `rows` rows, of three equal ones, for all."""
    thread = threading.get_ident()

    def first(value: Any) -> Any:
        is_batch = isinstance(value, torch.Tensor) and value.ndim > 0 and len(value) == rows
        return value[: rows // 3] if is_batch else value

    def before(module: torch.nn.Module, arguments: tuple, named: dict) -> Any:
        return tree_map(first, (arguments, named)) if threading.get_ident() == thread else None

    def after(module: torch.nn.Module, arguments: tuple, output: Any) -> Any:
        if threading.get_ident() != thread:
            return None
        return tree_map(lambda value: torch.cat([value] * 3) if isinstance(value, torch.Tensor) else value, output)

    handles = [module.register_forward_pre_hook(before, with_kwargs=True) for module in modules]
    handles += [module.register_forward_hook(after) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


_OTHER_KINDS = {
    5: "depth maps, too",
    7: "images to enlarge, too",
    8: "images to edit, too (InstructPix2Pix)",
    9: "masks, too (inpainting)",
}


_BY_ADDITION = {None: "Stable Diffusion 1.x or 2.x", "text_time": "Stable Diffusion XL or its kin"}


def check_unet(unet: Any, addition: str | None = None) -> None:
    """Raise ValueError for a UNet that is none for text and images of the kind with an `addition_embed_type`."""
    config = unet.config
    taken = f"take the plain text-to-image checkpoint of {_BY_ADDITION[addition]}"
    if missing := [name for name in ("in_channels", "out_channels", "cross_attention_dim") if not config.get(name)]:
        raise ValueError(f"`unet` is a {type(unet).__name__} without {missing[0]!r}, and takes no prompts: {taken}.")
    if (own := config.get("addition_embed_type")) != addition:
        name = _BY_ADDITION.get(own, "another family")
        raise ValueError(f"The UNet is of {name} (addition_embed_type {own!r}): {taken}.")
    if config.get("time_cond_proj_dim") is not None:
        raise ValueError(
            f"The UNet is distilled to take the guidance scale (time_cond_proj_dim {config.time_cond_proj_dim}, as in"
            f" LCM), which region-wise guidance cannot give: {taken}."
        )
    if config.in_channels != config.out_channels:
        also = _OTHER_KINDS.get(config.in_channels, "something else, too")
        raise ValueError(
            f"The UNet takes {config.in_channels} channels and gives {config.out_channels}: it is made for {also};"
            f" {taken}."
        )
    for name in ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type"):
        if config.get(name) is not None:
            raise ValueError(f"The UNet has {name} {config[name]!r} and needs more than a prompt: {taken}.")
    prompt_width(unet)


def prompt_width(unet: Any) -> int:
    """Width of the prompt embeddings that a UNet takes; its configuration may give one for each block."""
    given = unet.config.cross_attention_dim
    widths = {given} if isinstance(given, int) else set(given)
    if len(widths) > 1:
        raise ValueError(f"The UNet takes prompts of several widths {sorted(widths)}: one text encoder gives only one.")
    return widths.pop()


def pooled_width(unet: Any) -> int:
    """Width of the pooled prompt embeddings that a UNet of Stable Diffusion XL takes."""
    return unet.config.projection_class_embeddings_input_dim - SIZE_NUMBERS * unet.config.addition_time_embed_dim


def check_vae(vae: Any, denoiser: Any, called: str = "UNet") -> None:
    """Raise ValueError for a VAE that does not go with a denoiser, which may be None."""
    config = vae.config
    for name in ("in_channels", "latent_channels", "scaling_factor", "block_out_channels"):
        if not config.get(name):
            raise ValueError(f"`vae` is a {type(vae).__name__} without {name!r}: take an `AutoencoderKL`.")
    given = config.get("out_channels", config.in_channels)
    if config.in_channels != given:
        raise ValueError(
            f"The VAE takes images of {config.in_channels} channels and gives {given}: take one that gives back what it"
            " takes."
        )
    if denoiser is not None and config.latent_channels != denoiser.config.in_channels:
        raise ValueError(
            f"The VAE makes latents of {config.latent_channels} channels and the {called} takes"
            f" {denoiser.config.in_channels}: take both from one checkpoint."
        )
