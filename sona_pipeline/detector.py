"""The detector: a classifier that also says how unfamiliar an image is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from huggingface_hub import PyTorchModelHubMixin
from PIL import Image
from torch import nn
from torchvision.transforms.v2.functional import pil_to_tensor

from sona_pipeline import networks
from sona_pipeline.data import ImageSet
from sona_pipeline.imaging import fit
from sona_pipeline.scores import energy


@dataclass(frozen=True)
class Detection:
    """What the detector says of one image: its class, its energy (higher = more OOD), and whether it is flagged."""

    label: str
    energy: float
    is_ood: bool


@dataclass(frozen=True)
class Predictions:
    """Predicted class index `[N]` and energy `[N]` of every image of a set."""

    labels: np.ndarray
    energies: np.ndarray


class Detector(nn.Module, PyTorchModelHubMixin, library_name="sona-pipeline", tags=["out-of-distribution-detection"]):
    """Image classifier with an energy score and a threshold; weights in safetensors, settings in config.json.

    Args:
        classes: names of the classes, in the order of the logits.
        network: a name of `networks.NETWORKS`.
        image_size: side in pixels that images are scaled and cropped to.
        threshold: energy above which an image is flagged as OOD; None until it is calibrated.
        temperature: T of the energy score.
    """

    def __init__(
        self,
        classes: list[str],
        network: str = "resnet8",
        image_size: int = 32,
        threshold: float | None = None,
        temperature: float = 1.0,
    ):
        super().__init__()
        self.classes, self.image_size = list(classes), image_size
        self.threshold, self.temperature = threshold, temperature
        self.network = networks.build(network, len(classes), image_size)

    @classmethod
    def _load_as_pickle(cls, model, model_file, map_location, strict):
        raise ValueError(f"{model_file} is a pickle, and is not loaded: save the detector as safetensors")

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits `[B, C]` of images `[B, 3, H, W]` in [0, 1]."""
        return self.network((pixels - 0.5) / 0.25)

    def pixels(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """Images as the tensor `[B, 3, H, W]` in [0, 1] that `forward` takes."""
        return torch.stack([pil_to_tensor(fit(image, self.image_size)) for image in images]).float() / 255

    @torch.no_grad()
    def detect(self, images: Sequence[Image.Image]) -> list[Detection]:
        """Class, energy and verdict of each image.

        Raises:
            ValueError: the detector has no threshold.
        """
        if self.threshold is None:
            raise ValueError("this detector has no threshold: train it with validation data, or set `threshold`")
        self.eval()
        device = next(self.parameters()).device
        logits = self(self.pixels(images).to(device))
        energies = energy(logits, self.temperature).tolist()
        return [
            Detection(self.classes[label], value, value > self.threshold)
            for label, value in zip(logits.argmax(dim=1).tolist(), energies)
        ]

    def calibrated(self, id_energies: torch.Tensor, id_rate: float = 0.95) -> Detector:
        """The same network with the threshold under which the share `id_rate` of the ID validation energies lies."""
        threshold = torch.quantile(id_energies.double(), id_rate).item()
        settings = self._hub_mixin_config | {"threshold": threshold}
        new = Detector(**settings)
        new.load_state_dict(self.state_dict())
        return new


@torch.no_grad()
def predict(detector: Detector, images: ImageSet, batch_size: int = 256) -> Predictions:
    """Run the detector over all images of a set, in batches."""
    detector.eval()
    device = next(detector.parameters()).device
    labels, energies = [], []
    for start in range(0, len(images), batch_size):
        pictures = [images.image(i) for i in range(start, min(start + batch_size, len(images)))]
        logits = detector(detector.pixels(pictures).to(device))
        labels.append(logits.argmax(dim=1).cpu().numpy())
        energies.append(energy(logits, detector.temperature).cpu().numpy())
    return Predictions(np.concatenate(labels), np.concatenate(energies))
