"""DICE (Sun & Li 2022): energy with the weights of the head that contribute most on average."""

from __future__ import annotations

import torch
from torch.nn.functional import linear

from sona_pipeline.evaluation.posthoc.base import Known, Method, Scorer, energy
from sona_pipeline.evaluation.posthoc.percentiles import percentile_of


def fit(known: Known, p: float = 90) -> Scorer:
    """Weights stay where weight times mean training feature is above the percentile `p` of all of these."""
    head = known.detector.network.head
    contributions = head.weight * known.training.features.mean(dim=0)
    kept = torch.where(contributions > percentile_of(contributions, p), head.weight, 0)
    return lambda seen: energy(linear(seen.features, kept, head.bias))


METHOD = Method(fit, {"p": (10, 30, 50, 70, 90)})
