"""NPOS: outliers drawn around the features at the edge of each class, without any form of its distribution."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from sona_pipeline.detection.edges import Edge, drawn_outside
from sona_pipeline.training.methods.base import Step
from sona_pipeline.training.methods.cider import Hypersphere

if TYPE_CHECKING:
    from sona_pipeline.detection.networks import Network
    from sona_pipeline.training.settings import TrainingSettings

KEPT, START, WEIGHT = 1000, 0.4, 0.1
"""Features kept a class, the progress from which on outliers are drawn, and the weight of telling them apart."""
EDGE = Edge(neighbours=300, size=200, picked=2, drawn=600, kept=200, spread=0.1)


class NPOS(Hypersphere):
    """Non-parametric outlier synthesis (Tao et al. 2023); the paper scores by the score "knn".

    The features with the farthest k-th neighbour in their class are its edge. Of Gaussian points around each of two of
    them those are outliers that are farthest from the class. A small network learns to tell them from features of ID
    images, where either kind counts as much, beside the losses of CIDER (compactness 1, dispersion 0.5).
    """

    queue: torch.Tensor
    seen: torch.Tensor
    start = START

    def __init__(self, network: Network, settings: TrainingSettings):
        super().__init__(network, settings)
        width, classes = network.head.in_features, network.head.out_features
        self.judge = nn.Sequential(nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, 1))
        self.register_buffer("queue", torch.zeros(classes, KEPT, width))
        self.register_buffer("seen", torch.zeros(classes, dtype=torch.long))

    def forward(self, step: Step) -> torch.Tensor:
        """Compactness, half of the dispersion, and from its start on the cross-entropy of telling outliers apart."""
        compact, disperse = self.losses(step)
        loss = compact + 0.5 * disperse
        if step.progress >= START and bool((self.seen >= KEPT).all()):
            with torch.autocast(self.queue.device.type, enabled=False):
                outliers = torch.cat([drawn_outside(own, EDGE) for own in self.queue])
            known, unknown = self.judge(step.features.float()), self.judge(outliers)
            loss = loss + WEIGHT * (F.softplus(-known).mean() + F.softplus(unknown).mean())
        else:
            loss = loss + 0 * sum(weight.sum() for weight in self.judge.parameters())
        self._keep(step.features.detach().float(), step.labels)
        return loss

    def _keep(self, features: torch.Tensor, labels: torch.Tensor) -> None:
        for label in labels.unique().tolist():
            rows = features[labels == label][-KEPT:]
            places = (self.seen[label] + torch.arange(len(rows), device=rows.device)) % KEPT
            self.queue[label, places] = rows
            self.seen[label] += len(rows)
