"""Job: train a detector on ID images and their outliers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor

from sona_pipeline.data import ImageSet
from sona_pipeline.detector import Detector, predict
from sona_pipeline.imaging import fit
from sona_pipeline.losses import outlier_exposure
from sona_pipeline.outlier_set import OutlierPairs
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
        min_strength: outliers of less strength are not trained on, since they have hardly changed.
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
    min_strength: float = 0.4
    flip: bool = True
    seed: int = 0


class Pixels(Dataset):
    """Augmented images of a set, uint8 `[3, S, S]`; decoded once and kept in memory as long as there is room."""

    def __init__(self, images: ImageSet, size: int, augment: v2.Transform):
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
        return self.augment(pixels)


class PairedPixels(Dataset):
    """ID images as dictionaries: `image`, `label`, and where given `outlier`, `is_used` and `reconstruction`."""

    def __init__(self, images: ImageSet, pairs: OutlierPairs | None, settings: TrainingSettings):
        augment = _augmentation(settings)
        sets = {"image": images}
        if pairs:
            sets |= {"outlier": pairs.outliers, "reconstruction": pairs.reconstructions}
        self.labels = images.labels
        self.pixels = {k: Pixels(s, settings.image_size, augment) for k, s in sets.items() if s is not None}
        self.is_used = [strength >= settings.min_strength for strength in pairs.strengths] if pairs else None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        item = {name: pixels[index] for name, pixels in self.pixels.items()} | {"label": self.labels[index]}
        return item | {"is_used": self.is_used[index]} if self.is_used else item


def train_detector(
    images: ImageSet,
    settings: TrainingSettings,
    *,
    validation: ImageSet,
    pairs: OutlierPairs | None = None,
    title: str = "training",
) -> Detector:
    """Train a detector with L = CE(ID) + beta OE(outliers), (8) of the paper without its MI term.

    Args:
        images: labelled ID images.
        settings: see `TrainingSettings`.
        validation: labelled ID images that the threshold is calibrated on, at a true-positive rate of 95 %.
        pairs: the same images with their outliers; None trains by cross-entropy only. VAE round trips among them are
            trained on as ID images, so that the traces of the decoder do not give outliers away.
        title: what the progress bar says.

    Raises:
        ValueError: the sets do not go together.
    """
    _check(images, validation, pairs, settings)
    torch.manual_seed(settings.seed)
    accelerator = Accelerator()
    detector = Detector(list(images.classes), settings.network, settings.image_size)
    order = torch.Generator().manual_seed(settings.seed)
    loader = DataLoader(
        PairedPixels(images, pairs, settings),
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
                loss = detection_loss(model, batch, settings.outlier_weight)
                optimizer.zero_grad()
                accelerator.backward(loss)
                optimizer.step()
                schedule.step()
                track.advance()
    detector = accelerator.unwrap_model(model)
    return detector.calibrated(torch.from_numpy(predict(detector, validation).energies))


def detection_loss(model, batch: dict[str, torch.Tensor], outlier_weight: float) -> torch.Tensor:
    """CE(ID) + beta OE(outliers) of a batch as `PairedPixels` gives it.

    Reconstructions count as ID images with the labels of their sources. One forward pass for all.
    """
    parts = [name for name in ("image", "reconstruction", "outlier") if name in batch]
    pixels = torch.cat([batch[name] for name in parts]).float() / 255
    logits = dict(zip(parts, model(pixels).chunk(len(parts))))
    known = [F.cross_entropy(logits[name], batch["label"]) for name in parts if name != "outlier"]
    loss = sum(known) / len(known)
    if "outlier" in logits and batch["is_used"].any():
        loss = loss + outlier_weight * outlier_exposure(logits["outlier"][batch["is_used"]])
    return loss


def _augmentation(settings: TrainingSettings) -> v2.Transform:
    steps = [v2.RandomCrop(settings.image_size, padding=settings.image_size // 8)]
    return v2.Compose([*steps, v2.RandomHorizontalFlip()] if settings.flip else steps)


def _check(images: ImageSet, validation: ImageSet, pairs: OutlierPairs | None, settings: TrainingSettings) -> None:
    if len(set(images.labels)) < 2:
        raise ValueError(f"a detector needs images of two classes or more; there are {sorted(set(images.labels))}")
    if validation.classes != images.classes:
        raise ValueError(f"validation classes {validation.classes} are not the training classes {images.classes}")
    if pairs and pairs.images.keys != images.keys:
        raise ValueError(f"{len(images)} images and {len(pairs.images)} with outliers: they have to be the same ones")
    if pairs and max(pairs.strengths) < settings.min_strength:
        raise ValueError(f"no outlier has the strength {settings.min_strength} or more: lower `min_strength`")
