"""Scores that rank images from familiar to unfamiliar; higher is more out-of-distribution."""

import torch


def energy(logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Energy score (Liu et al. 2020) `[B]` of logits `[B, C]`: E(x) = -T logsumexp(f(x) / T), higher = more OOD."""
    return -temperature * torch.logsumexp(logits.float() / temperature, dim=1)
