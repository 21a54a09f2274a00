"""Checkpoints of the size of well-known ones, with random weights: nothing is downloaded, and speed is the same."""

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from family_models import SD2_TOKENS, SD2_UNET, XL_UNET
from timing import SEED
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sona_pipeline import TINY_MODEL, SONAPipeline

STAGES = 4


@dataclass(frozen=True)
class Sizes:
    """The layers of a latent diffusion model, beside diffusers' and transformers' defaults.

    Attributes:
        unet, vae, text_encoder: settings of the three models.
    """

    unet: dict
    vae: dict
    text_encoder: dict


def vae_of(channels: tuple[int, ...], layers: int) -> dict:
    """Settings of a VAE that divides sides by 8."""
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * STAGES, "up_block_types": ("UpDecoderBlock2D",) * STAGES}
    return blocks | {"block_out_channels": channels, "layers_per_block": layers, "latent_channels": 4}


def text_of(width: int, layers: int) -> dict:
    """Settings of a text encoder with heads of 64 channels."""
    heads = {"num_attention_heads": max(1, width // 64), "num_hidden_layers": layers}
    return heads | {"hidden_size": width, "intermediate_size": 4 * width, "max_position_embeddings": SD2_TOKENS}


SD_VAE = vae_of((128, 256, 512, 512), layers=2)
SIZES = {
    "Stable Diffusion 2": Sizes(SD2_UNET, SD_VAE, text_of(1024, layers=23)),
    "Stable Diffusion XL": Sizes(XL_UNET, SD_VAE, text_of(2048, layers=2)),
}
"""SD 2 at 512 px has 866 million parameters in the UNet. SDXL at 1024 px has 2,562 million, without the embedding of
sizes and pooled prompts, which SONA has none of; in place of two text encoders there is a small one of their width."""


def toy(sizes: Sizes) -> Sizes:
    """The same blocks with few channels and layers, for images of 128 px."""
    narrow = {"block_out_channels": (32,) * len(sizes.unet["block_out_channels"]), "attention_head_dim": 4}
    narrow |= {"sample_size": 16, "cross_attention_dim": 64, "layers_per_block": 1, "transformer_layers_per_block": 1}
    return Sizes(sizes.unet | narrow, vae_of((32,) * STAGES, layers=1), text_of(64, layers=1))


def write_model(sizes: Sizes, folder: Path, device: torch.device) -> None:
    """Write a checkpoint in float16, made on `device` and the same for each device of a kind; none if it is there."""
    if folder.exists():
        return
    torch.manual_seed(SEED)
    tokenizer = CLIPTokenizer.from_pretrained(TINY_MODEL / "tokenizer", model_max_length=SD2_TOKENS)
    ends = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    vocabulary = {"vocab_size": len(tokenizer), **ends}
    with device:
        parts = {
            "vae": AutoencoderKL(**sizes.vae),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**vocabulary, **sizes.text_encoder)),
            "unet": UNet2DConditionModel(**sizes.unet),
        }
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    pipe = SONAPipeline(**parts, tokenizer=tokenizer, scheduler=scheduler).to(torch.float16)
    unfinished = folder.with_suffix(".part")
    pipe.save_pretrained(unfinished)
    unfinished.rename(folder)
