"""OpenMax (Bendale & Boult 2016): probability of a class "unknown", from how far logits are from those of each class.

Fitted as OpenOOD does it, by the Weibull distribution of libmr. The score is the probability of the unknown class, as
in the paper; OpenOOD takes the largest of all probabilities, with that of the unknown class among them.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import brentq  # type: ignore[import-untyped]

from sona_pipeline.evaluation.posthoc.base import Known, Method, Scorer, Seen

TAIL, ALPHA, SHIFT = 20, 3, 1.0
"""Farthest images of a class that are fitted to; highest logits that are revised; and libmr's least distance, to which
the smallest of a tail is moved."""


def weibull(values: np.ndarray) -> tuple[float, float]:
    """Shape and scale of the likeliest Weibull distribution of positive values `[N]`, not all equal."""
    logs = np.log(values / values.max())

    def slope(shape: float) -> float:
        weights = np.exp(shape * logs)
        return (weights * logs).sum() / weights.sum() - 1 / shape - logs.mean()

    shape = brentq(slope, 1e-3, 1e6)
    return shape, values.max() * np.exp(shape * logs).mean() ** (1 / shape)


def _model(logits: torch.Tensor, name: str) -> tuple[torch.Tensor, float, float, float]:
    """Mean `[C]` of the logits `[N, C]` of a class; and the least distance, shape and scale of its tail."""
    mean = logits.mean(dim=0)
    distances = (logits - mean).norm(dim=1).sort().values[-TAIL:].cpu().numpy()
    if len(np.unique(distances)) < 2:
        raise ValueError(f"{len(logits)} images of class {name!r} are classified correctly: OpenMax needs two or more")
    smallest = float(distances.min())
    return mean, smallest, *weibull(distances - smallest + SHIFT)


def fit(known: Known) -> Scorer:
    """To training images that the network classifies correctly, by the distance of their logits from the class mean.

    Raises:
        ValueError: a class has not two of them at different distances.
    """
    _, logits, labels = known.training.right()
    models = [_model(logits[labels == label].double(), name) for label, name in enumerate(known.detector.classes)]
    mean = torch.stack([model[0] for model in models])
    smallest, shape, scale = torch.tensor([model[1:] for model in models], dtype=mean.dtype, device=mean.device).T

    def score(seen: Seen) -> torch.Tensor:
        found = seen.logits.double()
        distances = (found[:, None] - mean).norm(dim=2)
        outside = 1 - torch.exp(-(((distances - smallest + SHIFT).clamp(min=0) / scale) ** shape))
        ranks = found.argsort(dim=1, descending=True).argsort(dim=1)
        moved = found * outside * ((ALPHA - ranks) / ALPHA).clamp(min=0)
        revised = torch.cat([moved.sum(dim=1, keepdim=True), found - moved], dim=1)
        return revised.softmax(dim=1)[:, 0]

    return score


METHOD = Method(fit)
