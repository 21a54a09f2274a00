"""fDBD (Liu & Qin 2024): mean distance to the decision boundaries, by the distance to the mean feature, negated."""

from __future__ import annotations

import torch

from sona_pipeline.evaluation.posthoc.base import Known, Method, Scorer, Seen


def fit(known: Known, distance_as_normalizer: bool = True) -> Scorer:
    """Summed over the boundaries, as in OpenOOD; the length of the feature may be the divisor as well."""
    weight = known.detector.network.head.weight
    gaps = torch.cdist(weight, weight, compute_mode="donot_use_mm_for_euclid_dist").fill_diagonal_(1)
    center = known.training.features.mean(dim=0) if distance_as_normalizer else 0

    def score(seen: Seen) -> torch.Tensor:
        highest, predicted = seen.logits.max(dim=1, keepdim=True)
        distances = (highest - seen.logits) / gaps[predicted.flatten()]
        return -distances.sum(dim=1) / (seen.features - center).norm(dim=1)

    return score


METHOD = Method(fit, {"distance_as_normalizer": (True, False)})
