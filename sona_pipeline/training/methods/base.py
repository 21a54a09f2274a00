"""Training methods: what each adds to the cross-entropy of the ID images, or puts in its place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from sona_pipeline.detection.overdrawn import Classify

if TYPE_CHECKING:
    from sona_pipeline.detection.networks import Network
    from sona_pipeline.training.settings import TrainingSettings


@dataclass
class Step:
    """What a training step has at hand, for B ID images (round trips are not among them) and U outliers.

    Attributes:
        labels: `[B]`.
        logits, features: `[B, C]` and `[B, D]` of the ID images, features as the heads take them; of a method with two
            views, first those of one view of each image and then those of the other, and so the labels.
        outlier_logits, outlier_features: `[U, C]` and `[U, D]`.
        sources: `[U]`, which ID image each outlier belongs to.
        id_share: `[U]`, share of the ID image that was mixed into each outlier, in [0, 1].
        progress: how much of the training is done, in [0, 1).
        places, outlier_places: `[B]` and `[U]`, where the images and the outliers stand in their sets.
    """

    labels: torch.Tensor
    logits: torch.Tensor
    features: torch.Tensor
    outlier_logits: torch.Tensor
    outlier_features: torch.Tensor
    sources: torch.Tensor
    id_share: torch.Tensor
    progress: float
    places: torch.Tensor
    outlier_places: torch.Tensor


@dataclass
class Exposure:
    """What outliers to train on are made from, before the forward pass.

    Attributes:
        images, labels: `[U, 3, H, W]` in [0, 1], and `[U]`, of the ID images.
        outliers: their own outliers `[U, 3, H, W]`; none of a method that makes them.
        strengths: `[U]`, share of the diffusion steps that each outlier was noised by; 1 of any other image.
        classify: the network as it is.
        deviation: `[1, 3, 1, 1]`, standard deviation of the pixels that the network's images are divided by.
        progress: see `Step`.
    """

    images: torch.Tensor
    labels: torch.Tensor
    outliers: torch.Tensor
    strengths: torch.Tensor
    classify: Classify
    deviation: torch.Tensor
    progress: float


class Method(nn.Module):
    """A training method. Its parameters and buffers, if any, are trained and saved along with the detector.

    The loss is added, times `weight`, to the cross-entropy of the network's own head on ID images. A part of the
    network that it uses is kept in a list, or it would be trained and saved twice. Parameters take part in the loss of
    every step, with a factor of 0 where they are not due yet, since several processes wait for all gradients.

    Attributes:
        weight: what its whole loss is multiplied by unless told otherwise.
        needs_outliers: whether it is given outliers to train on.
        makes_outliers: whether `expose` makes them of the ID images alone.
        keeps_pairs: whether mutual information is added where each image has its own outlier. False where `expose`
            changes the outliers, and for a rival that is to be as in its paper.
        skips_without_outliers: whether a batch without outliers has no loss of the method.
        views: of each ID image in a batch, each augmented by itself: 1 or 2.
        heads: of the network: 1, or 2 for a `network.second_head`, which the method's loss trains.
        looks_at_all: whether `begin_epoch` is called before each epoch.
        start: progress of the training from which on the method has its whole part; earlier epochs are not kept.
        trains_features: whether the features are trained by this loss alone, and the cross-entropy trains the head on
            features as they come.
    """

    weight: float = 0.5
    needs_outliers: bool = True
    makes_outliers: bool = False
    keeps_pairs: bool = True
    skips_without_outliers: bool = True
    views: int = 1
    heads: int = 1
    looks_at_all: bool = False
    start: float = 0.0
    trains_features: bool = False

    def __init__(self, network: Network, settings: TrainingSettings):
        super().__init__()

    def expose(self, exposure: Exposure) -> tuple[torch.Tensor, torch.Tensor]:
        """Outliers `[U, 3, H, W]` to train on, and the share `[U]` of the ID images in them."""
        return exposure.outliers, exposure.outliers.new_zeros(len(exposure.outliers))

    def begin_epoch(self, epoch: int, known: torch.Tensor, labels: torch.Tensor, outliers: torch.Tensor) -> None:
        """Look at the features of all images as they are now, without augmentation.

        Args:
            epoch: from 0 on.
            known, labels: `[N, D]` and `[N]` of the ID images.
            outliers: `[M, D]`; M is 0 without outliers.
        """

    def forward(self, step: Step) -> torch.Tensor:
        """The loss, a scalar."""
        raise NotImplementedError
