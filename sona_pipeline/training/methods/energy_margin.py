"""Energy margins: energies of ID images and outliers are held apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sona_pipeline.detection.scores.of_logits import energy
from sona_pipeline.training.methods.base import Method, Step

if TYPE_CHECKING:
    from sona_pipeline.detection.networks import Network
    from sona_pipeline.training.settings import TrainingSettings


GAP = 10.0
"""In units of energy, between margins that follow the ID energies; the paper's fixed ones are about 20 apart."""


def energy_margin(
    id_logits: torch.Tensor, outlier_logits: torch.Tensor, m_in: float | None = None, m_out: float | None = None
) -> torch.Tensor:
    """Energy-bounded learning (Liu et al. 2020, equation 8).

    mean max(0, E(x_in) - m_in)^2 + mean max(0, m_out - E(x_out))^2. The paper's margins are fixed: -23 and -5 for
    CIFAR-10, -27 and -5 for CIFAR-100, on networks that are trained already.

    Without fixed margins they follow the ID energies of the batch: m_in is their mean, and m_out lies `GAP` above it.
    The gradient flows through these margins too: only differences of energies count, and outliers that cannot be told
    from ID images do not drive all energies up.

    Args:
        id_logits: `[B, C]` for ID images.
        outlier_logits: `[U, C]` for outliers.
        m_in, m_out: fixed margins in units of energy, both or none.
    """
    known, unknown = energy(id_logits), energy(outlier_logits)
    lower = known.mean() if m_in is None else m_in
    upper = lower + GAP if m_out is None else m_out
    return (known - lower).relu().square().mean() + (upper - unknown).relu().square().mean()


class EnergyMargin(Method):
    """Energy-bounded learning (Liu et al. 2020)."""

    weight = 0.1

    def __init__(self, network: Network, settings: TrainingSettings):
        super().__init__(network, settings)
        self.m_in, self.m_out = settings.m_in, settings.m_out

    def forward(self, step: Step) -> torch.Tensor:
        """The energy margins between ID images and outliers."""
        return energy_margin(step.logits, step.outlier_logits, self.m_in, self.m_out)
