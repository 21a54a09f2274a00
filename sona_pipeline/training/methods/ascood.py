"""ASCOOD: outliers from the ID images themselves, by the gradient of the classifier that is trained."""

from __future__ import annotations

import torch

from sona_pipeline.detection.overdrawn import LARGEST, LEAST, overdrawn
from sona_pipeline.training.methods.base import Exposure, Method, Step
from sona_pipeline.training.methods.outlier_exposure import outlier_exposure


class ASCOOD(Method):
    """Outlier synthesis with training data (Regmi 2026, arXiv 2411.10794), by gradients.

    x' = x + alpha dz_y/dx on the tenth of the values x, of normalized pixels, with the largest gradients of the logit
    z_y of its class; alpha falls from 300 to 30 over the training. What tells the class is overdrawn and broken, the
    rest stays. Outlier exposure to these, and features that are z-scored (`feature_scale` 0.5), make up the method.
    """

    weight = 1.0
    needs_outliers = False
    skips_without_outliers = False
    makes_outliers = True
    keeps_pairs = False

    def expose(self, exposure: Exposure) -> tuple[torch.Tensor, torch.Tensor]:
        """An outlier of each image; no share of an ID image is left in it to be learned."""
        factor = LARGEST + (LEAST - LARGEST) * exposure.progress
        made = overdrawn(exposure.images, exposure.labels, exposure.classify, exposure.deviation, factor)
        return made, made.new_zeros(len(made))

    def forward(self, step: Step) -> torch.Tensor:
        """Outlier exposure to what was made of the images."""
        return outlier_exposure(step.outlier_logits)
