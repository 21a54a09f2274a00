"""ASCOOD: outliers from the ID images themselves, by the gradient of the classifier that is trained."""

from __future__ import annotations

import torch

from sona_pipeline.detection.networks import SMALL
from sona_pipeline.detection.overdrawn import LARGEST, LEAST, overdrawn, shuffled
from sona_pipeline.training.methods.base import Exposure, Method, Step
from sona_pipeline.training.methods.outlier_exposure import outlier_exposure


class ASCOOD(Method):
    """Outlier synthesis with training data (Regmi 2026, arXiv 2411.10794), by gradients.

    Of images of more than 64 px, x' = x + alpha dz_y/dx on the tenth of the values x, of normalized pixels, with the
    largest gradients of the logit z_y of its class; alpha falls from 300 to 30 over the training. Of smaller ones, the
    tenth of the pixels where the gradients are highest is shuffled. What tells the class is broken, the rest
    stays. Outlier exposure to these, and features that are z-scored (`feature_scale` 0.5), make up the method.
    """

    weight = 1.0
    needs_outliers = False
    skips_without_outliers = False
    makes_outliers = True
    keeps_pairs = False

    def expose(self, exposure: Exposure) -> tuple[torch.Tensor, torch.Tensor]:
        """An outlier of each image; no share of an ID image is left in it to be learned."""
        images = exposure.images
        known = images, exposure.labels, exposure.classify, exposure.deviation
        if images.shape[-1] <= SMALL:
            made = shuffled(*known, torch.rand(len(images), images[0, 0].numel(), device=images.device))
        else:
            made = overdrawn(*known, LARGEST + (LEAST - LARGEST) * exposure.progress)
        return made, made.new_zeros(len(made))

    def forward(self, step: Step) -> torch.Tensor:
        """Outlier exposure to what was made of the images."""
        return outlier_exposure(step.outlier_logits)
