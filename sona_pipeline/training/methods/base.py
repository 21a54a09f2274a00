"""Training methods: what each adds to the cross-entropy of the ID images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from sona_pipeline.training.settings import TrainingSettings


@dataclass
class Step:
    """What a training step has at hand, for B ID images (round trips are not among them) and U outliers.

    Attributes:
        labels: `[B]`.
        logits, features: `[B, C]` and `[B, D]` of the ID images.
        outlier_logits, outlier_features: `[U, C]` and `[U, D]`.
        sources: `[U]`, which ID image each outlier belongs to.
        id_share: `[U]`, share of the ID image that was mixed into each outlier, in [0, 1].
        progress: how much of the training is done, in [0, 1).
    """

    labels: torch.Tensor
    logits: torch.Tensor
    features: torch.Tensor
    outlier_logits: torch.Tensor
    outlier_features: torch.Tensor
    sources: torch.Tensor
    id_share: torch.Tensor
    progress: float


class Method(nn.Module):
    """A training method. Its parameters and buffers, if any, are trained and saved along with the detector.

    Attributes:
        weight: what its loss is multiplied by unless told otherwise.
        needs_outliers: whether it is given outliers to train on.
        keeps_pairs: whether these are the outliers as they are, so that mutual information may be added.
    """

    weight: float = 0.5
    needs_outliers: bool = True
    keeps_pairs: bool = True

    def __init__(self, head: nn.Linear, settings: TrainingSettings):
        super().__init__()

    def mix(self, images: torch.Tensor, outliers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Outliers `[U, 3, H, W]` to train on and the share `[U]` of the ID images in them, before the forward pass."""
        return outliers, outliers.new_zeros(len(outliers))

    def forward(self, step: Step) -> torch.Tensor:
        """The loss, a scalar."""
        raise NotImplementedError
