"""Denoisers of every family of models with random weights, at their own width and small, in a pipeline around them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from timing import SEED

from sona_pipeline.generation.families import family_of_name

FLOW = {"shift": 3.0}
SHIFTING = {"use_dynamic_shifting": True}
VAE = {"block_out_channels": (32,) * 4, "down_block_types": ("DownEncoderBlock2D",) * 4}
VAE |= {"up_block_types": ("UpDecoderBlock2D",) * 4, "latent_channels": 16}
QWEN_VAE = {"base_dim": 32, "z_dim": 16}
SD2_TOKENS = 77
SD2_UNET = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "layers_per_block": 2,
    "use_linear_projection": True,
}
"""The layers of stable-diffusion-2-base, beside diffusers' defaults: 866 million parameters, 3.5 GB in float32."""
XL_UNET = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
}
"""The layers of Stable Diffusion XL, without the embedding of sizes and pooled prompts."""
NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


@dataclass(frozen=True)
class Layout:
    """A family's denoiser, beside diffusers' defaults.

    Attributes:
        family: its name in `FAMILIES`.
        kind: the class of the denoiser in diffusers.
        full: settings of its own width; those that are deep get a few of their layers, each as wide as all of them.
        small: settings of a denoiser of a few million parameters.
        tokens: of a prompt.
        vae: settings of an autoencoder, which is loaded and not used.
        vae_kind: its class.
        scheduler: settings of the family's scheduler.
        img2img: diffusers' own img2img pipeline of the family, if there is one that takes latents.
        guidance: its argument for guidance by two prompts, and a value that turns it on.
    """

    family: str
    kind: str
    full: dict[str, Any]
    small: dict[str, Any]
    tokens: int
    vae: dict[str, Any] = field(default_factory=lambda: VAE)
    vae_kind: str = "AutoencoderKL"
    scheduler: dict[str, Any] = field(default_factory=lambda: SHIFTING)
    img2img: str | None = None
    guidance: tuple[str, float] = ("true_cfg_scale", 4.0)


LAYOUTS = {
    "Stable Diffusion 2": Layout(
        family="stable_diffusion",
        kind="UNet2DConditionModel",
        full=SD2_UNET,
        small=SD2_UNET
        | {
            "sample_size": 32,
            "block_out_channels": (64, 64, 128, 128),
            "layers_per_block": 1,
            "attention_head_dim": (2, 2, 4, 4),
            "cross_attention_dim": 128,
        },
        tokens=SD2_TOKENS,
        vae=VAE | {"latent_channels": 4},
        scheduler=NOISE,
        img2img="StableDiffusionImg2ImgPipeline",
        guidance=("guidance_scale", 4.0),
    ),
    "Stable Diffusion XL": Layout(
        family="stable_diffusion_xl",
        kind="UNet2DConditionModel",
        full=XL_UNET
        | {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        small=XL_UNET
        | {
            "sample_size": 32,
            "block_out_channels": (64, 128, 128),
            "layers_per_block": 1,
            "transformer_layers_per_block": 1,
            "attention_head_dim": (2, 4, 4),
            "cross_attention_dim": 128,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 16,
            "projection_class_embeddings_input_dim": 64 + 6 * 16,
        },
        tokens=77,
        vae=VAE | {"latent_channels": 4},
        scheduler=NOISE,
        img2img="StableDiffusionXLImg2ImgPipeline",
        guidance=("guidance_scale", 4.0),
    ),
    "Stable Diffusion 3.5 medium": Layout(
        family="stable_diffusion_3",
        kind="SD3Transformer2DModel",
        full={"num_layers": 6, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 384},
        small={
            "num_layers": 4,
            "num_attention_heads": 4,
            "caption_projection_dim": 256,
            "joint_attention_dim": 256,
            "pooled_projection_dim": 256,
            "pos_embed_max_size": 96,
        },
        tokens=77 + 256,
        scheduler=FLOW,
        img2img="StableDiffusion3Img2ImgPipeline",
        guidance=("guidance_scale", 4.0),
    ),
    "Z-Image": Layout(
        family="z_image",
        kind="ZImageTransformer2DModel",
        full={"n_layers": 3, "n_refiner_layers": 1},
        small={
            "n_layers": 2,
            "n_refiner_layers": 1,
            "dim": 256,
            "n_heads": 4,
            "n_kv_heads": 4,
            "cap_feat_dim": 256,
            "axes_dims": [32, 16, 16],
        },
        tokens=128,
        scheduler={"shift": 6.0},
        img2img="ZImageImg2ImgPipeline",
        guidance=("guidance_scale", 4.0),
    ),
    "FLUX.1 [dev]": Layout(
        family="flux",
        kind="FluxTransformer2DModel",
        full={"num_layers": 1, "num_single_layers": 2, "guidance_embeds": True},
        small={
            "num_layers": 1,
            "num_single_layers": 2,
            "guidance_embeds": True,
            "num_attention_heads": 2,
            "joint_attention_dim": 256,
            "pooled_projection_dim": 256,
        },
        tokens=512,
        img2img="FluxImg2ImgPipeline",
    ),
    "Chroma": Layout(
        family="chroma",
        kind="ChromaTransformer2DModel",
        full={"num_layers": 1, "num_single_layers": 2},
        small={
            "num_layers": 1,
            "num_single_layers": 2,
            "num_attention_heads": 2,
            "joint_attention_dim": 256,
            "approximator_hidden_dim": 256,
        },
        tokens=128,
        scheduler=FLOW,
    ),
    "FLUX.2 [klein] base": Layout(
        family="flux_2",
        kind="Flux2Transformer2DModel",
        full={
            "num_layers": 1,
            "num_single_layers": 2,
            "num_attention_heads": 24,
            "joint_attention_dim": 7680,
            "guidance_embeds": False,
        },
        small={
            "num_layers": 1,
            "num_single_layers": 2,
            "num_attention_heads": 2,
            "joint_attention_dim": 384,
            "guidance_embeds": False,
        },
        tokens=512,
        vae=VAE | {"latent_channels": 32},
        vae_kind="AutoencoderKLFlux2",
    ),
    "Qwen-Image": Layout(
        family="qwen_image",
        kind="QwenImageTransformer2DModel",
        full={"num_layers": 2},
        small={"num_layers": 3, "num_attention_heads": 2, "joint_attention_dim": 256},
        tokens=128,
        vae=QWEN_VAE,
        vae_kind="AutoencoderKLQwenImage",
        img2img="QwenImageImg2ImgPipeline",
    ),
}
"""FLUX.2 has no img2img in diffusers, and that of Chroma takes no latents."""


def pipeline_of(name: str, is_full: bool) -> Any:
    """A pipeline around a random denoiser; it has no text encoders, and neither encodes nor decodes."""
    layout = LAYOUTS[name]
    torch.manual_seed(SEED)
    denoiser = getattr(diffusers, layout.kind)(**layout.full if is_full else layout.small)
    if layout.kind.startswith("UNet"):
        denoiser.to(memory_format=torch.channels_last)
    family = family_of_name(layout.family)
    kind = "DDIMScheduler" if layout.kind.startswith("UNet") else "FlowMatchEulerDiscreteScheduler"
    given = {
        "vae": getattr(diffusers, layout.vae_kind)(**layout.vae),
        "scheduler": getattr(diffusers, kind)(**layout.scheduler),
        "unet" if layout.kind.startswith("UNet") else "transformer": denoiser.eval().requires_grad_(False),
    }
    names, _ = family._get_signature_keys(family)
    pipe = family(**{part: given.get(part) for part in names})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def conditions_of(pipe: Any, name: str, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Random conditions of a prompt, as long as the family's own are."""
    made = {}
    for key, shape in pipe.condition_shapes.items():
        sides = [1, *(LAYOUTS[name].tokens if side is None else side for side in shape)]
        is_mask = key.endswith("mask")
        made[key] = torch.ones(sides, dtype=torch.bool) if is_mask else torch.randn(sides, generator=generator)
    return made


def outliers(pipe: Any, name: str, images: int, side: int, steps: int) -> Callable[..., None]:
    """A call from latents to latents with `side` x `side` latents of the autoencoder, all steps for all images.

    It takes further arguments of the pipeline.
    """
    generator = torch.Generator().manual_seed(SEED)
    prompts = {f"{kind}_prompt_embeds": conditions_of(pipe, name, generator) for kind in ("uncond", "id", "ood")}
    side = side * pipe.vae_scale_factor // pipe.latent_side
    latents = torch.randn(images, pipe.latent_channels, side, side, generator=generator)

    def call(**options: Any) -> None:
        given = prompts | {"num_inference_steps": steps, "stop_step": steps} | options
        pipe(latents, **given, output_type="latent", generator=generator)

    return call
