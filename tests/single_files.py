"""Checkpoints of Stable Diffusion in one file, with the names that their first code has for weights."""

import re

import torch
from safetensors.torch import save_file


def renamed(key, names):
    """`key` with each of the names in it replaced."""
    return re.sub("|".join(map(re.escape, names)), lambda match: names[match[0]], key)


def ldm_unet_key(key, unet):
    """The name of a UNet parameter in the original files of Stable Diffusion 1."""
    length = unet.config.layers_per_block + 1

    def numbered(match):
        side, block, kind, layer = match[1], int(match[2]), match[3], int(match[4])
        if side == "down":
            layer = length - 1 if kind == "downsamplers" else layer
            return f"input_blocks.{1 + block * length + layer}.{int(kind == 'attentions')}"
        layer = length - 1 if kind == "upsamplers" else layer
        slots = {"resnets": 0, "attentions": 1, "upsamplers": 1 + hasattr(unet.up_blocks[block], "attentions")}
        return f"output_blocks.{block * length + layer}.{slots[kind]}"

    in_resnets = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    }
    elsewhere = {
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "conv_in.": "input_blocks.0.0.",
        "downsamplers.0.conv": "downsamplers.0.op",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    key = renamed(renamed(key, in_resnets) if "resnets" in key else key, elsewhere)
    return "model.diffusion_model." + re.sub(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)", numbered, key)


def ldm_vae_key(key, vae):
    """The name of a VAE parameter in the original files of Stable Diffusion 1."""
    last = len(vae.config.block_out_channels) - 1
    names = {
        "mid_block.resnets.0": "mid.block_1",
        "mid_block.attentions.0": "mid.attn_1",
        "mid_block.resnets.1": "mid.block_2",
        "down_blocks": "down",
        "resnets": "block",
        "downsamplers.0": "downsample",
        "upsamplers.0": "upsample",
        "group_norm": "norm",
        "to_q": "q",
        "to_k": "k",
        "to_v": "v",
        "to_out.0": "proj_out",
        "conv_norm_out": "norm_out",
        "conv_shortcut": "nin_shortcut",
    }
    key = re.sub(r"up_blocks\.(\d+)", lambda match: f"up.{last - int(match[1])}", key)
    return "first_stage_model." + renamed(key, names)


def open_clip_state(encoder):
    """The weights of a text encoder with OpenCLIP's names, and its query, key and value in one."""
    names = {
        "text_model.embeddings.token_embedding": "token_embedding",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "text_model.encoder.layers": "transformer.resblocks",
        "text_model.final_layer_norm": "ln_final",
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "self_attn.out_proj": "attn.out_proj",
    }
    state, given = {}, encoder.state_dict()
    for key, value in given.items():
        if key == "text_projection.weight":
            state["text_projection"] = value.T
        elif "q_proj" in key:
            parts = [given[key.replace("q_proj", f"{one}_proj")] for one in "qkv"]
            state[renamed(key, names | {"self_attn.q_proj.": "attn.in_proj_"})] = torch.cat(parts)
        elif "k_proj" not in key and "v_proj" not in key:
            state[renamed(key, names)] = value
    return state


def write_single_file(pipe, path):
    """Write the pipeline's weights in the original form of Stable Diffusion 1, or XL with a second text encoder."""
    state = {ldm_unet_key(key, pipe.unet): value for key, value in pipe.unet.state_dict().items()}
    for key, value in pipe.vae.state_dict().items():
        convolution = re.search(r"\.to_\w+.*weight", key)  # attention was made of 1 x 1 convolutions
        state[ldm_vae_key(key, pipe.vae)] = value[:, :, None, None] if convolution else value
    is_xl = hasattr(pipe, "text_encoder_2")
    start = "conditioner.embedders.0." if is_xl else "cond_stage_model."
    for key, value in pipe.text_encoder.state_dict().items():
        state[f"{start}transformer.text_model." + key.removeprefix("text_model.")] = value
    if is_xl:
        second = open_clip_state(pipe.text_encoder_2)
        state |= {f"conditioner.embedders.1.model.{key}": value for key, value in second.items()}
    save_file({key: value.contiguous() for key, value in state.items()}, path)
