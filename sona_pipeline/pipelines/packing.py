"""Latents as tokens of 2 x 2, which several transformers take."""

from __future__ import annotations

import torch
from torch.nn.functional import pixel_shuffle, pixel_unshuffle


def packed(latents: torch.Tensor) -> torch.Tensor:
    """Latents `[B, C, H, W]` as tokens `[B, H W / 4, 4 C]`, row by row, each of 2 x 2 latents."""
    return pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)


def unpacked(tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The opposite of `packed`, for latents of a height and width."""
    return pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (height // 2, width // 2)), 2)
