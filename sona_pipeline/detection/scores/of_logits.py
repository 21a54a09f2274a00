"""Energy, maximum softmax probability and maximum logit."""

import torch


def energy(logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Energy score (Liu et al. 2020) `[B]` of logits `[B, C]`: E(x) = -T logsumexp(f(x) / T)."""
    return -temperature * torch.logsumexp(logits.float() / temperature, dim=1)


def msp(logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Maximum softmax probability (Hendrycks & Gimpel 2017), negated: -max_c softmax_c(f(x) / T), in [-1, -1/C]."""
    return -(logits.float() / temperature).softmax(dim=1).amax(dim=1)


def max_logit(logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Maximum logit (Hendrycks et al. 2022), negated: -max_c f_c(x). The temperature does not change its order."""
    return -logits.float().amax(dim=1)
