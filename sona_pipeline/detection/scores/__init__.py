"""Scores that a detector can have, from familiar to unfamiliar; a score is one function and one line here.

A score takes logits `[B, C]` and a temperature, and gives `[B]`, higher = more out-of-distribution. Those that need
features `[B, D]`, too, and compare them with what the detector keeps, see `of_features`, have a registry of their own.
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
FEATURE_SCORES: Registry[Callable[..., torch.Tensor]] = Registry(
    {"energy+knn": "sona_pipeline.detection.scores.of_features:energy_and_knn"}
)
OWN_SCORES = (*SCORES, *FEATURE_SCORES)
