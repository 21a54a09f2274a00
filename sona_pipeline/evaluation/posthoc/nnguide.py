"""NNGuide (Park et al. 2023): energy times the mean likeness to the nearest training images."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from sona_pipeline.evaluation.posthoc.base import Known, Method, Scorer, Seen, energy


def fit(known: Known, k: int = 100, alpha: float = 0.01) -> Scorer:
    """Likeness is the cosine times the energy of the training image.

    Args:
        known: the share `alpha` of its training images is taken, drawn at random, but not fewer than `k`.
        k: neighbours; all images if there are fewer.
        alpha: in (0, 1].
    """
    features, logits, _ = known.training
    count = min(len(features), max(k, round(alpha * len(features))))
    drawn = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))[:count].to(features.device)
    bank = normalize(features[drawn]) * -energy(logits[drawn])[:, None]

    def score(seen: Seen) -> torch.Tensor:
        nearest = (normalize(seen.features) @ bank.T).topk(min(k, count), dim=1).values
        return nearest.mean(dim=1) * energy(seen.logits)

    return score


METHOD = Method(fit)
