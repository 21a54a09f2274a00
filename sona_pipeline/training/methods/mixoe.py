"""MixOE: outliers on the way from ID images to other images."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from sona_pipeline.training.methods.base import Exposure, Method, Step


class MixOE(Method):
    """Mixture outlier exposure (Zhang et al. 2023, "Mixture Outlier Exposure", WACV), with CutMix.

    A box of the outlier is laid into its ID image; the target is the label for the ID image's share of the picture and
    the uniform distribution for the rest. The share is drawn from Beta(1, 1), as for CutMix (Yun et al. 2019).
    """

    weight = 1.0
    keeps_pairs = False

    def expose(self, exposure: Exposure) -> tuple[torch.Tensor, torch.Tensor]:
        """ID images with a box of their outliers in them, and the share of the ID image in each."""
        images, outliers = exposure.images, exposure.outliers
        height, width = images.shape[-2:]
        side, middle_y, middle_x = torch.rand(3, len(images), 1, 1, device=images.device)
        side = side.sqrt() / 2  # a box of half this side has a uniform share of the picture, before it is cut off
        y = (torch.arange(height, device=images.device).view(1, -1, 1) + 0.5) / height
        x = (torch.arange(width, device=images.device).view(1, 1, -1) + 0.5) / width
        in_box = ((y - middle_y).abs() < side) & ((x - middle_x).abs() < side)
        mixed = torch.where(in_box.unsqueeze(1), outliers, images)
        return mixed, 1 - in_box.flatten(1).float().mean(dim=1)

    def forward(self, step: Step) -> torch.Tensor:
        """The cross-entropy of the mixed labels."""
        log_probabilities = F.log_softmax(step.outlier_logits, dim=1)
        of_label = log_probabilities.gather(1, step.labels[step.sources].unsqueeze(1)).squeeze(1)
        return -(step.id_share * of_label + (1 - step.id_share) * log_probabilities.mean(dim=1)).mean()
