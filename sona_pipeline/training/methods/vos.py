"""VOS: outliers made up in the feature space, from the thin edge of each class."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from sona_pipeline.training.methods.base import Method, Step

if TYPE_CHECKING:
    from sona_pipeline.detection.networks import Network
    from sona_pipeline.training.settings import TrainingSettings

KEPT, DRAWN, START = 200, 10_000, 0.4
"""Features kept a class, samples of which the least likely one is taken, and the progress from which on."""


class VOS(Method):
    """Virtual outlier synthesis (Du et al. 2022).

    The latest features of each class give class means and one covariance. The least likely of many samples of each
    class's Gaussian are the virtual outliers; a logistic regression on a weighted energy -log sum_c relu(w_c) e^f_c
    learns to tell them from ID images, and its loss trains the features.

    As the covariance L L' is shared, a sample is mean_c + L z with z from the standard normal distribution, and the
    least likely sample is the one with the longest z. The direction of z does not depend on its length, so that only
    lengths need be drawn many times.
    """

    queue: torch.Tensor
    seen: torch.Tensor
    weight = 0.1
    needs_outliers = False
    skips_without_outliers = False
    keeps_pairs = False
    start = START

    def __init__(self, network: Network, settings: TrainingSettings):
        super().__init__(network, settings)
        head = network.head
        self._head = [head]  # in a list, so that it is not trained or saved twice
        self.class_weights = nn.Parameter(torch.rand(head.out_features))
        self.judge = nn.Linear(1, 1)
        self.register_buffer("queue", torch.zeros(head.out_features, KEPT, head.in_features))
        self.register_buffer("seen", torch.zeros(head.out_features, dtype=torch.long))

    def forward(self, step: Step) -> torch.Tensor:
        """The loss of the logistic regression, once there are enough features."""
        is_full = bool((self.seen >= KEPT).all())
        loss = 0 * (self.class_weights.sum() + self.judge(step.logits[:1, :1]).sum())
        if is_full and step.progress >= START:
            outliers = self._head[0](self.virtual_outliers())
            energies = torch.cat([self._energy(step.logits), self._energy(outliers)])
            is_outlier = torch.arange(len(energies), device=energies.device) >= len(step.logits)
            answers = self.judge(energies.unsqueeze(1)).squeeze(1)
            loss = loss + F.binary_cross_entropy_with_logits(answers, is_outlier.float())
        self._keep(step.features.detach().float(), step.labels)
        return loss

    @torch.no_grad()
    def virtual_outliers(self) -> torch.Tensor:
        """An unlikely feature of each class, `[C, D]`, by the features kept."""
        with torch.autocast(self.queue.device.type, enabled=False):
            return self._drawn(self.queue.mean(dim=1))

    def _drawn(self, means: torch.Tensor) -> torch.Tensor:
        centred = (self.queue - means.unsqueeze(1)).flatten(0, 1)
        classes, width = means.shape
        covariance = centred.T @ centred / len(centred) + 1e-4 * torch.eye(width, device=centred.device)
        squares = torch.distributions.Chi2(torch.tensor(float(width), device=centred.device))
        length = squares.sample((classes, DRAWN)).amax(dim=1, keepdim=True).sqrt()
        z = length * F.normalize(torch.randn(classes, width, device=centred.device), dim=1)
        return means + z @ torch.linalg.cholesky(covariance).T

    def _energy(self, logits: torch.Tensor) -> torch.Tensor:
        weights = self.class_weights.relu().clamp(min=1e-8)
        return -torch.logsumexp(logits.float() + weights.log(), dim=1)

    def _keep(self, features: torch.Tensor, labels: torch.Tensor) -> None:
        for label, row in zip(labels.tolist(), features):
            self.queue[label, self.seen[label] % KEPT] = row
            self.seen[label] += 1
