"""CLIP text encoders, which several families have one or two of."""

from __future__ import annotations

import math
from typing import Any

import torch


def prompt_length(tokenizer: Any, text_encoder: Any) -> int:
    """Tokens of a prompt: what the tokenizer says, if it says so, and no more than the text encoder has places for."""
    places = getattr(text_encoder.config, "max_position_embeddings", None)
    length = min(tokenizer.model_max_length or math.inf, places or math.inf)
    if length > 1_000_000:
        raise ValueError(
            "Neither the tokenizer (model_max_length) nor the text encoder (max_position_embeddings) says how long a"
            " prompt may be: set `model_max_length` in tokenizer_config.json."
        )
    return int(length)


def check_width(encoder: str, given: int | None, denoiser: str, taken: int) -> None:
    """Raise ValueError unless a text encoder gives what a denoiser takes."""
    if given != taken:
        raise ValueError(
            f"{encoder} gives embeddings of width {given} and the {denoiser} takes {taken}: take both from one"
            " checkpoint."
        )


def padded_tokens(texts: list[str], tokenizer: Any, length: int) -> Any:
    """Tokens `[N, length]` of texts, which are padded or cut."""
    return tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")


def states_before(hidden_states: tuple[torch.Tensor, ...], layers: int, clip_skip: int | None) -> torch.Tensor:
    """Hidden states before the last layers, and before `clip_skip` more; ValueError if there are fewer."""
    most = len(hidden_states) - 1 - layers
    if clip_skip is not None and clip_skip > most:
        raise ValueError(f"`clip_skip` is {clip_skip}, but the text encoder has {most} layers only to skip.")
    return hidden_states[most - (clip_skip or 0)]


def states_and_outputs(
    texts: list[str], tokenizer: Any, text_encoder: Any, device: torch.device, clip_skip: int | None
) -> tuple[torch.Tensor, Any]:
    """Hidden states `[N, L, D]` before the last layer, as Stable Diffusion XL and 3 take them, and all outputs."""
    tokens = padded_tokens(texts, tokenizer, prompt_length(tokenizer, text_encoder))
    outputs = text_encoder(tokens.input_ids.to(device), output_hidden_states=True)
    return states_before(outputs.hidden_states, 1, clip_skip), outputs
