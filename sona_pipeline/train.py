"""Job: train a detector on ID images and their outliers."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor

from sona_pipeline.data import ImageSet, fit
from sona_pipeline.detector import Detector
from sona_pipeline.evaluate import predict
from sona_pipeline.losses import outlier_exposure
from sona_pipeline.progress import Track

CACHE_BYTES = 2 << 30


@dataclass(frozen=True)
class TrainingSettings:
    """How a detector is trained.

    Attributes:
        network: a name of `networks.NETWORKS`.
        image_size: side in pixels.
        epochs, batch_size, learning_rate, weight_decay: of SGD with Nesterov momentum 0.9 and a one-cycle rate.
        outlier_weight: beta, the weight of outlier exposure.
        flip: mirror images at random, where left and right mean the same.
        seed: of weights, order and augmentation.
    """

    network: str = "resnet8"
    image_size: int = 32
    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    outlier_weight: float = 0.5
    flip: bool = True
    seed: int = 0


class Pixels(Dataset):
    """Images of a set as uint8 tensors `[3, S, S]`, kept in memory once decoded as long as there is room."""

    def __init__(self, images: ImageSet, size: int, augment: v2.Transform | None = None):
        self.images, self.size, self.augment = images, size, augment
        self._kept: dict[int, torch.Tensor] = {}
        self._room = CACHE_BYTES // (3 * size * size)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        pixels = self._kept.get(index)
        if pixels is None:
            pixels = pil_to_tensor(fit(self.images.image(index), self.size))
            if len(self._kept) < self._room:
                self._kept[index] = pixels
        return pixels if self.augment is None else self.augment(pixels)


class PairedPixels(Dataset):
    """ID images with their labels, their own outlier and their own VAE round trip (where given)."""

    def __init__(self, images: Pixels, outliers: Pixels | None, reconstructions: Pixels | None):
        self.images, self.others = images, [other for other in (outliers, reconstructions) if other is not None]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple:
        return self.images[index], self.images.images.labels[index], *(other[index] for other in self.others)


def train_detector(
    images: ImageSet,
    settings: TrainingSettings,
    *,
    validation: ImageSet,
    outliers: ImageSet | None = None,
    reconstructions: ImageSet | None = None,
    title: str = "training",
) -> Detector:
    """Train a detector with L = CE(ID) + beta OE(outliers), (8) of the paper without its MI term.

    Args:
        images: labelled ID images.
        settings: see `TrainingSettings`.
        validation: labelled ID images that the threshold is calibrated on, at a true-positive rate of 95 %.
        outliers: one an ID image, in the same order; None trains by cross-entropy only.
        reconstructions: VAE round trips of the ID images in the same order, trained on as ID images, so that the
            traces of the decoder do not give outliers away.
        title: what the progress bar says.

    Raises:
        ValueError: the sets do not go together.
    """
    _check(images, validation, outliers, reconstructions)
    torch.manual_seed(settings.seed)
    random.seed(settings.seed)
    np.random.seed(settings.seed)
    accelerator = Accelerator()
    detector = Detector(list(images.classes), settings.network, settings.image_size)
    augment = _augmentation(settings)
    sets = [s and Pixels(s, settings.image_size, augment) for s in (images, outliers, reconstructions)]
    order = torch.Generator().manual_seed(settings.seed)
    loader = DataLoader(
        PairedPixels(*sets),
        settings.batch_size,
        shuffle=True,
        generator=order,
        drop_last=len(images) > settings.batch_size,
    )
    optimizer = torch.optim.SGD(
        detector.parameters(), settings.learning_rate, momentum=0.9, nesterov=True, weight_decay=settings.weight_decay
    )
    total = settings.epochs * len(loader)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, total, pct_start=0.15)
    model, optimizer, loader, schedule = accelerator.prepare(detector, optimizer, loader, schedule)

    with Track(title, total) as track:
        for _ in range(settings.epochs):
            model.train()
            for batch in loader:
                loss = detection_loss(
                    model, batch, outliers is not None, reconstructions is not None, settings.outlier_weight
                )
                optimizer.zero_grad()
                accelerator.backward(loss)
                optimizer.step()
                schedule.step()
                track.advance()
    detector = accelerator.unwrap_model(model)
    return detector.calibrated(torch.from_numpy(predict(detector, validation).energies))


def detection_loss(model, batch, has_outliers: bool, has_reconstructions: bool, outlier_weight: float) -> torch.Tensor:
    """CE(ID) + beta OE(outliers) of a batch (images, labels[, outliers][, reconstructions]) of uint8 images.

    Reconstructions count as ID images with the labels of their sources. One forward pass for all.
    """
    images, labels, *others = batch
    logits = model(torch.cat([images, *others]).float() / 255).chunk(1 + len(others))
    known = [logits[0], logits[-1]] if has_reconstructions else [logits[0]]
    loss = sum(F.cross_entropy(part, labels) for part in known) / len(known)
    return loss + outlier_weight * outlier_exposure(logits[1]) if has_outliers else loss


def _augmentation(settings: TrainingSettings) -> v2.Transform:
    steps = [v2.RandomCrop(settings.image_size, padding=settings.image_size // 8)]
    return v2.Compose([*steps, v2.RandomHorizontalFlip()] if settings.flip else steps)


def _check(images: ImageSet, validation: ImageSet, outliers: ImageSet | None, reconstructions: ImageSet | None) -> None:
    if len(set(images.labels)) < 2:
        raise ValueError(f"a detector needs images of two classes or more; there are {sorted(set(images.labels))}")
    if validation.classes != images.classes:
        raise ValueError(f"validation classes {validation.classes} are not the training classes {images.classes}")
    for name, other in (("outliers", outliers), ("reconstructions", reconstructions)):
        if other is not None and len(other) != len(images):
            raise ValueError(f"{len(other)} {name} for {len(images)} images: one an image is needed, in their order")
