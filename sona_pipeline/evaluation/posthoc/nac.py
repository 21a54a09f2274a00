"""NAC-UE (Liu et al. 2024): neurons in states that training images had, too.

The state of a neuron is sigmoid(steepness z dL/dz), with z its feature and L the divergence of the probabilities from
equal ones, minus its constant: L = -mean_c log p_c. States are counted in bins that are finer around 0.5. With n the
count of a bin among the training images that the network gets right, it is covered by min(n / full, 1); the score is
the negated mean over the neurons of an image.
"""

from __future__ import annotations

import torch

from sona_pipeline.detection.detector import Detector
from sona_pipeline.evaluation.posthoc.base import Known, Method, Scorer, Seen

BASE = 1000.0
"""Of the logarithm by which the edges of the bins are spaced."""


def fit(known: Known, steepness: float = 100.0, bins: int = 50, full: int = 50) -> Scorer:
    """Of the penultimate features, as the authors' configuration for a ResNet on CIFAR-10 has it.

    Args:
        known: see `Known`.
        steepness: of the sigmoid.
        bins: between 0 and 1.
        full: training images in a bin from which on it counts as covered.

    Raises:
        ValueError: the network classifies no training image correctly.
    """
    detector, edges = known.detector, bin_edges(bins).to(known.detector.device)
    features = known.training.right().features
    if not len(features):
        raise ValueError("no training image is classified correctly: NAC counts the states of those that are")
    places = torch.bucketize(states(detector, features, steepness), edges)
    neurons = torch.arange(places.shape[1], device=places.device)
    counts = torch.zeros(places.shape[1], len(edges) + 1, device=places.device)
    counts.index_put_((neurons.expand_as(places), places), counts.new_ones(()), accumulate=True)
    covered = (counts / full).clamp(max=1)

    def score(seen: Seen) -> torch.Tensor:
        return -covered[neurons, torch.bucketize(states(detector, seen.features, steepness), edges)].mean(dim=1)

    return score


def states(detector: Detector, features: torch.Tensor, steepness: float) -> torch.Tensor:
    """`[B, D]` in [0, 1] of features `[B, D]`."""
    with torch.enable_grad():
        moved = features.detach().requires_grad_()
        divergence = -detector.network.head(moved).log_softmax(dim=1).mean(dim=1).sum()
        (slope,) = torch.autograd.grad(divergence, moved)
    return (steepness * features * slope).sigmoid()


def bin_edges(bins: int) -> torch.Tensor:
    """The edges `[bins - 1]` between bins from 0 to 1: log_1000 of equal steps up to 0.5, and their mirror image."""
    lower = torch.linspace(1, BASE**0.5, bins // 2 + 1, dtype=torch.float64).log() / torch.tensor(BASE).log()
    return torch.cat([lower[1:], 1 - lower[1:-1].flip(0)]).float()


METHOD = Method(fit, {"steepness": (100.0, 1000.0, 3000.0), "bins": (50, 500), "full": (10, 50, 500)})
