"""ASCOOD's outliers, by the gradient of a classifier that is trained already."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from sona_pipeline.data.class_names import composed
from sona_pipeline.detection.detector import Detector, load_detector
from sona_pipeline.detection.networks import SMALL
from sona_pipeline.detection.overdrawn import LARGEST, LEAST, overdrawn, shuffled
from sona_pipeline.generation.ways.base import Way, latents_of, pixels_of

if TYPE_CHECKING:
    from sona_pipeline.generation.make import OutlierMaker, Work


class ASCOOD(Way):
    """Sources in which what tells their class is overdrawn (Regmi 2026, arXiv 2411.10794).

    For a detector of up to 64 px the pixels that tell it are shuffled. The factor of the gradient for others, which the
    paper lowers from 300 to 30 while it trains, is drawn for each image.
    """

    uses_stop_step = uses_label = False
    needs_classifier = True

    @classmethod
    def rows(cls, stop_step: int, steps: int) -> int:
        """The UNet has no part in it."""
        return 0

    def load(self, maker: OutlierMaker, classifier: str | None) -> None:
        """Load the detector whose gradient it is."""
        plan = maker.plan
        self.detector: Detector = load_detector(str(classifier), self.pipe.device)
        place = {composed(name): index for index, name in enumerate(self.detector.classes)}
        if unknown := [name for name in plan.images.classes if composed(name) not in place]:
            raise ValueError(f"the detector {classifier} does not know the classes {unknown[:5]}: give one that does")
        self.labels = [place[composed(name)] for name in plan.images.classes]

    def __call__(self, maker: OutlierMaker, work: Work) -> torch.Tensor:
        """All images of a batch together, and back into latents."""
        pixels, size = pixels_of(maker, work), self.detector.image_size
        labels = [self.labels[maker.plan.images.labels[item.index]] for item in work.items]
        deviation = self.detector.std if pixels.shape[1] == 3 else self.detector.std.mean(dim=1, keepdim=True)

        def classify(images: torch.Tensor) -> torch.Tensor:
            scaled = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
            return self.detector(scaled.expand(-1, 3, -1, -1))

        known = pixels, torch.tensor(labels, device=pixels.device), classify, deviation
        count = pixels[0, 0].numel() if size <= SMALL else 1
        drawn = torch.stack([torch.rand(count, generator=generator) for generator in work.generators])
        if size <= SMALL:
            return latents_of(maker, shuffled(*known, drawn))
        factor = (LEAST + (LARGEST - LEAST) * drawn).view(-1, 1, 1, 1).to(pixels.device)
        factor = factor * (pixels.shape[-1] / size) ** 2  # the gradient of a pixel of the network is shared by so many
        return latents_of(maker, overdrawn(*known, factor))
