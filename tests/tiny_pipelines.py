"""Random pipelines of a few thousand weights, for tests in seconds and without downloads."""

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

# The settings of Stable Diffusion 1.x and 2.x, in diffusers' names.
SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
}
LENGTH = 16
"""Tokens of a prompt."""
WIDTH = 16
"""Width of its embedding."""


def byte_tokenizer(length: int = LENGTH, pad_token: str = "<|endoftext|>") -> CLIPTokenizer:
    """A CLIP tokenizer of single characters: the 256 symbols of byte-level BPE, inside and at the end of a word."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbols = [chr(code) for code in printable] + [chr(256 + k) for k in range(256 - len(printable))]
    tokens = [*symbols, *(f"{symbol}</w>" for symbol in symbols), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: k for k, token in enumerate(tokens)},
        merges=[],
        model_max_length=length,
        pad_token=pad_token,
    )


def build(
    prediction_type: str = "epsilon",
    scheduler=DDIMScheduler,
    image_channels: int = 3,
    dtype: torch.dtype = torch.float32,
) -> dict:
    """Components of a random pipeline, the same at each call: the VAE divides sides by 4, latents have 4 channels."""
    tokenizer = byte_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = AutoencoderKL(
            in_channels=image_channels,
            out_channels=image_channels,
            down_block_types=["DownEncoderBlock2D"] * 3,
            up_block_types=["UpDecoderBlock2D"] * 3,
            block_out_channels=[4, 4, 8],
            latent_channels=4,
            norm_num_groups=2,
            sample_size=32,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=WIDTH,
                intermediate_size=WIDTH,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=LENGTH,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
            up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
            block_out_channels=[8, 16],
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=4,
            cross_attention_dim=WIDTH,
        )
        # Initial weights hardly listen to the prompt: louder token embeddings and cross attention make it matter.
        for name, parameter in [*text_encoder.named_parameters(), *unet.named_parameters()]:
            if "token_embedding" in name:
                parameter.data.mul_(50)
            elif "attn2.to_out" in name:
                parameter.data.mul_(4)
    models = {"vae": vae, "text_encoder": text_encoder, "unet": unet}
    if dtype != torch.float32:
        models = {name: model.to(dtype) for name, model in models.items()}
    return {
        **{name: model.eval().requires_grad_(False) for name, model in models.items()},
        "tokenizer": tokenizer,
        "scheduler": scheduler.from_config(DDIMScheduler(**SCHEDULE, prediction_type=prediction_type).config),
    }
