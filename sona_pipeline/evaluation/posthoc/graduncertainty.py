"""Squared length of the gradient of the cross-entropy to all classes at once (Lee & AlRegib 2020), negated.

The gradient of -sum log p by the logits is C p - 1. By the weights of the head it is that times the features, and by
its bias that itself. The paper trains a classifier of such lengths on OOD images; here the length is the score, and
nothing is fitted.
"""

from __future__ import annotations

import torch

from sona_pipeline.evaluation.posthoc.base import Known, Method, Scorer, Seen


def fit(known: Known) -> Scorer:
    """Of the head alone."""

    def score(seen: Seen) -> torch.Tensor:
        p = seen.logits.softmax(dim=1)
        return -(p.shape[1] * p - 1).square().sum(dim=1) * (seen.features.square().sum(dim=1) + 1)

    return score


METHOD = Method(fit)
