"""GEN (Liu et al. 2023): generalized entropy of the likeliest classes; nothing is fitted."""

from __future__ import annotations

import torch

from sona_pipeline.evaluation.posthoc.base import Known, Method, Scorer, Seen


def fit(known: Known, gamma: float = 0.1, m: int = 100) -> Scorer:
    """Sum of (p (1 - p)) ^ `gamma` over the `m` likeliest classes. Probabilities are not clamped, as in OpenOOD."""

    def score(seen: Seen) -> torch.Tensor:
        p = seen.logits.softmax(dim=1)
        p = p.topk(min(m, p.shape[1]), dim=1).values
        return (p**gamma * (1 - p) ** gamma).sum(dim=1)

    return score


METHOD = Method(fit, {"gamma": (0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0), "m": (10, 50, 100, 200, 500, 1000)})
