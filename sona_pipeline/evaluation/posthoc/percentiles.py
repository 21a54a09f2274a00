"""Percentiles of more values than `torch.quantile` takes."""

import numpy as np
import torch


def percentile_of(values: torch.Tensor, percentile: float) -> float:
    """The percentile, in [0, 100], of all values together; between two of them by a straight line."""
    return float(np.percentile(values.cpu().numpy(), percentile))
