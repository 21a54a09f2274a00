"""Scores of logits and features, beside the features of training images that a detector keeps."""

from collections.abc import Mapping, Sequence

import torch
from torch.nn.functional import normalize

from sona_pipeline.detection.scores.of_logits import energy

K = 50
"""Which neighbour counts among all training images, as in OpenOOD."""


def knn(features: torch.Tensor, neighbours: torch.Tensor, k: int = K) -> torch.Tensor:
    """Distance to the k-th nearest training image among normalized features (Sun et al. 2022), `[B]` in [0, 2].

    Args:
        features: `[B, D]`.
        neighbours: of training images, `[N, D]`, normalized.
        k: with fewer neighbours, it is the distance to the farthest.
    """
    queries, kept = normalize(features.float()), neighbours.float()
    squares = (queries.square().sum(1, keepdim=True) + kept.square().sum(1) - 2 * queries @ kept.T).clamp(min=1e-12)
    return squares.topk(min(k, len(kept)), dim=1, largest=False).values[:, -1].sqrt()


def energy_and_knn(
    logits: torch.Tensor,
    features: torch.Tensor,
    neighbours: torch.Tensor,
    k: int,
    parts: Mapping[str, Sequence[float]],
    temperature: float = 1.0,
) -> torch.Tensor:
    """Energy plus `knn`, each less its mean and by its standard deviation on ID images: `[B]`.

    Args:
        logits: `[B, C]`.
        features: `[B, D]`.
        neighbours, k: see `knn`.
        parts: mean and standard deviation of "energy" and "knn".
        temperature: of the energy.
    """
    found = {"energy": energy(logits, temperature), "knn": knn(features, neighbours, k)}
    first, second = ((values - parts[name][0]) / parts[name][1] for name, values in found.items())
    return first + second
