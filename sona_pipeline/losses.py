"""Training losses of the detector."""

import torch
import torch.nn.functional as F


def outlier_exposure(logits: torch.Tensor) -> torch.Tensor:
    """Outlier exposure (Hendrycks et al. 2019): cross-entropy of the uniform distribution to the predictions.

    -1/C sum_c log softmax_c(f(x)), averaged over the batch; log C at its minimum, where predictions are uniform.

    Args:
        logits: `[B, C]` for outliers.
    """
    return -F.log_softmax(logits, dim=1).mean()
