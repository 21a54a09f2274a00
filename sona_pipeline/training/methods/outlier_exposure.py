"""Outlier exposure: predictions for outliers are pulled to the uniform distribution."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from sona_pipeline.training.methods.base import Method, Step


def outlier_exposure(logits: torch.Tensor) -> torch.Tensor:
    """Outlier exposure (Hendrycks et al. 2019): cross-entropy of the uniform distribution to the predictions.

    -1/C sum_c log softmax_c(f(x)), averaged over the batch; log C at its minimum, where predictions are uniform.

    Args:
        logits: `[B, C]` for outliers.
    """
    return -F.log_softmax(logits, dim=1).mean()


class OutlierExposure(Method):
    """Outlier exposure to the uniform distribution: what SONA trains with, (8) of the paper."""

    def forward(self, step: Step) -> torch.Tensor:
        """The cross-entropy of the uniform distribution to the predictions for outliers."""
        return outlier_exposure(step.outlier_logits)
