"""ASCOOD: outliers from the ID images themselves, by the gradient of the classifier that is trained."""

from __future__ import annotations

import torch

from sona_pipeline.training.methods.base import Classify, Exposure, Method, Step
from sona_pipeline.training.methods.outlier_exposure import outlier_exposure

SHARE, FIRST, LAST = 0.1, 300.0, 30.0
"""Share of the values that are changed, and the factor of the gradient at the start of the training and at its end."""


class ASCOOD(Method):
    """Outlier synthesis with training data (Regmi 2026, arXiv 2411.10794), by gradients.

    x' = x + alpha dz_y/dx on the tenth of the values x, of normalized pixels, with the largest gradients of the logit
    z_y of its class; alpha falls from 300 to 30 over the training. What tells the class is overdrawn and broken, the
    rest stays. Outlier exposure to these, and features that are z-scored (`feature_scale` 0.5), make up the method.
    """

    weight = 1.0
    needs_outliers = False
    makes_outliers = True
    keeps_pairs = False

    def expose(self, exposure: Exposure) -> tuple[torch.Tensor, torch.Tensor]:
        """An outlier of each image; no share of an ID image is left in it to be learned."""
        factor = FIRST + (LAST - FIRST) * exposure.progress
        made = overdrawn(exposure.images, exposure.labels, exposure.classify, exposure.deviation, factor)
        return made, made.new_zeros(len(made))

    def forward(self, step: Step) -> torch.Tensor:
        """Outlier exposure to what was made of the images."""
        return outlier_exposure(step.outlier_logits)


def overdrawn(
    images: torch.Tensor, labels: torch.Tensor, classify: Classify, deviation: torch.Tensor, factor: float
) -> torch.Tensor:
    """Images `[B, 3, H, W]` plus `factor` times the gradient of their labels' logits, where it is among the largest.

    Args:
        images: pixels in [0, 1]; what comes out may leave that range.
        labels: `[B]`.
        classify: gives logits.
        deviation: `[1, 3, 1, 1]`, by which pixels are divided when they are normalized.
        factor: alpha, for normalized pixels.
    """
    moved = images.detach().requires_grad_()
    logits = classify(moved).gather(1, labels[:, None])
    (slope,) = torch.autograd.grad(logits.sum(), moved)
    slope = slope * deviation  # by normalized pixels
    sizes = slope.abs().flatten(1)
    largest = sizes.topk(max(1, int(SHARE * sizes.shape[1])), dim=1).indices
    mask = torch.zeros_like(sizes).scatter_(1, largest, 1).view_as(images)
    return images + factor * slope * mask * deviation
