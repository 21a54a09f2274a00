"""Scores that rank images from familiar to unfamiliar by their logits; a score is one function and one line here.

A score takes logits `[B, C]` and a temperature, and gives `[B]`, higher = more out-of-distribution.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sona_pipeline.common.registry import Registry

if TYPE_CHECKING:
    import torch

Score = Callable[["torch.Tensor", float], "torch.Tensor"]
SCORES: Registry[Score] = Registry(
    {name: f"sona_pipeline.detection.scores.of_logits:{name}" for name in ("energy", "msp", "max_logit")}
)
