"""CIDER: features on a sphere, close to the prototype of their class, and prototypes far from each other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from sona_pipeline.training.methods.base import Method, Step

if TYPE_CHECKING:
    from sona_pipeline.detection.networks import Network
    from sona_pipeline.training.settings import TrainingSettings

WIDTH, TEMPERATURE, BASE_TEMPERATURE, MOMENTUM = 128, 0.1, 0.07, 0.95
"""Of the sphere; of the cosines, and what the compactness is divided by; of the prototypes."""


def compactness(z: torch.Tensor, labels: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
    """Equation 6 of Ming et al.: cross-entropy of the cosines to the prototypes over the temperature, times T / 0.07.

    Args:
        z: unit features `[B, W]`.
        labels: `[B]`.
        prototypes: unit vectors `[C, W]`.
    """
    return TEMPERATURE / BASE_TEMPERATURE * F.cross_entropy(z @ prototypes.T / TEMPERATURE, labels)


def dispersion(prototypes: torch.Tensor) -> torch.Tensor:
    """Equation 7: mean over the classes of the log of the mean exp(cosine / T) to the prototypes of the others."""
    count = len(prototypes)
    others = ~torch.eye(count, dtype=torch.bool, device=prototypes.device)
    cosines = (prototypes @ prototypes.T / TEMPERATURE).masked_select(others).view(count, count - 1)
    return (cosines.exp().mean(dim=1)).log().mean()


def moved_prototypes(prototypes: torch.Tensor, z: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Prototypes after each feature has moved that of its class: mu <- unit(0.95 mu + 0.05 z), one after the other.

    Features of different classes do not meet, so the n-th of each class are taken together.
    """
    same = labels[:, None] == labels
    rank = (same.tril(diagonal=-1)).sum(dim=1)
    for turn in range(int(rank.max()) + 1):
        now = rank == turn
        moved = F.normalize(MOMENTUM * prototypes[labels[now]] + (1 - MOMENTUM) * z[now], dim=1)
        prototypes = prototypes.index_put((labels[now],), moved)
    return prototypes


class Hypersphere(Method):
    """What CIDER and NPOS share: two views of each image, a projection to the sphere, and prototypes.

    The head is trained on the features as they come, so that the detector still names classes.
    """

    prototypes: torch.Tensor
    weight = 1.0
    needs_outliers = False
    skips_without_outliers = False
    keeps_pairs = False
    views = 2
    trains_features = True

    def __init__(self, network: Network, settings: TrainingSettings):
        super().__init__(network, settings)
        width, classes = network.head.in_features, network.head.out_features
        self.projection = nn.Sequential(nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, WIDTH))
        self.register_buffer("prototypes", torch.zeros(classes, WIDTH))

    def losses(self, step: Step) -> tuple[torch.Tensor, torch.Tensor]:
        """Compactness and dispersion; the prototypes have moved by then, and their movement has a gradient."""
        with torch.autocast(step.features.device.type, enabled=False):
            z = F.normalize(self.projection(step.features.float()), dim=1)
            prototypes = moved_prototypes(self.prototypes, z, step.labels)
            self.prototypes = prototypes.detach()
            return compactness(z, step.labels, self.prototypes), dispersion(prototypes)


class CIDER(Hypersphere):
    """Compactness and dispersion regularized learning (Ming et al. 2023); the paper scores by the score "knn"."""

    def forward(self, step: Step) -> torch.Tensor:
        """Twice the compactness, and the dispersion."""
        compact, disperse = self.losses(step)
        return 2 * compact + disperse
