"""MCD: two heads that agree on ID images and are driven apart on outliers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from sona_pipeline.training.methods.base import Method, Step

if TYPE_CHECKING:
    from sona_pipeline.detection.networks import Network
    from sona_pipeline.training.settings import TrainingSettings

MARGIN, START = 1.2, 0.5
"""By how much the entropies are to differ, and the progress from which on outliers are used."""


def discrepancy(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Equation 4 of Yu and Aizawa: max(0, m - mean (H(p1) - H(p2))) of the entropies over the classes.

    Args:
        first, second: logits `[U, C]` of the two heads for outliers.
    """
    return (MARGIN - (entropy(first) - entropy(second)).mean()).relu()


def entropy(logits: torch.Tensor) -> torch.Tensor:
    """Entropy `[U]` of the probabilities of the classes, by logits `[U, C]`."""
    return -(logits.softmax(dim=1) * logits.log_softmax(dim=1)).sum(dim=1)


class MCD(Method):
    """Maximum classifier discrepancy (Yu and Aizawa 2019, "Unsupervised Out-of-Distribution Detection by ...", ICCV).

    Both heads learn the classes. In the second half of the training the first one is made unsure of outliers and the
    second one sure: the authors do so after the training, at a rate of its own. The score "mcd" is the distance between
    what the two say. OpenOOD's code takes the entropies over the images of a batch; here they are over the classes, as
    in the paper.
    """

    weight = 1.0
    keeps_pairs = False
    heads = 2
    start = START
    skips_without_outliers = False

    def __init__(self, network: Network, settings: TrainingSettings):
        super().__init__(network, settings)
        self._network = [network]  # in a list, so that its parameters are not trained or saved twice

    def forward(self, step: Step) -> torch.Tensor:
        """The cross-entropy of the second head, and from its start on the discrepancy on outliers."""
        second = self.second_head
        loss = F.cross_entropy(second(step.features), step.labels)
        if step.progress >= START and len(step.sources):
            loss = loss + discrepancy(step.outlier_logits, second(step.outlier_features))
        return loss

    @property
    def second_head(self) -> nn.Linear:
        """The other head of the network."""
        head = self._network[0].second_head
        if head is None:
            raise ValueError("the method 'mcd' needs a network of two heads")
        return head
