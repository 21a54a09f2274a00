"""Training losses that set outliers apart from ID images by their logits."""

import torch
import torch.nn.functional as F

from sona_pipeline.detection.scores import energy


def outlier_exposure(logits: torch.Tensor) -> torch.Tensor:
    """Outlier exposure (Hendrycks et al. 2019): cross-entropy of the uniform distribution to the predictions.

    -1/C sum_c log softmax_c(f(x)), averaged over the batch; log C at its minimum, where predictions are uniform.

    Args:
        logits: `[B, C]` for outliers.
    """
    return -F.log_softmax(logits, dim=1).mean()


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
