"""Energy margins: energies of ID images and outliers are held apart."""

from __future__ import annotations

import torch

from sona_pipeline.detection.scores.of_logits import energy
from sona_pipeline.training.methods.base import Method, Step


def energy_margin(id_logits: torch.Tensor, outlier_logits: torch.Tensor, gap: float = 10.0) -> torch.Tensor:
    """Energy-bounded learning (Liu et al. 2020, equation 8), with margins that follow the ID energies of the batch.

    mean max(0, E(x_in) - m_in)^2 + mean max(0, m_out - E(x_out))^2, where m_in is the mean of the ID energies and m_out
    lies `gap` above it. The gradient flows through the margins too: only differences of energies count, and outliers
    that cannot be told from ID images do not drive all energies up.

    Args:
        id_logits: `[B, C]` for ID images.
        outlier_logits: `[U, C]` for outliers.
        gap: in units of energy; the paper's fixed margins are about 20 apart.
    """
    known, unknown = energy(id_logits), energy(outlier_logits)
    lower = known.mean()
    return (known - lower).relu().square().mean() + (lower + gap - unknown).relu().square().mean()


class EnergyMargin(Method):
    """Energy-bounded learning (Liu et al. 2020)."""

    weight = 0.1

    def forward(self, step: Step) -> torch.Tensor:
        """The energy margins between ID images and outliers."""
        return energy_margin(step.logits, step.outlier_logits)
