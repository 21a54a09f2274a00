"""GradNorm (Huang et al. 2021): length of the gradient that pulls the softmax towards equal shares; nothing is fitted.

The gradient of the cross-entropy to equal shares by the weights of the head is (p - 1/C) times the features; its
length is the sum of absolute values, which is the product of two such sums.
"""

from __future__ import annotations

import torch

from sona_pipeline.evaluation.posthoc.base import Known, Method, Scorer, Seen


def fit(known: Known) -> Scorer:
    """At temperature 1. OpenOOD has C times this."""

    def score(seen: Seen) -> torch.Tensor:
        p = seen.logits.softmax(dim=1)
        return -(p - 1 / p.shape[1]).abs().sum(dim=1) * seen.features.abs().sum(dim=1)

    return score


METHOD = Method(fit)
