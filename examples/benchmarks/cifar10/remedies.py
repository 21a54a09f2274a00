"""Scores that might mend what SONA's detectors lose by with the post-hoc scores as published, for the table `remedies`.

Each is built as those of `sona_pipeline.POST_HOC` are. `mahalanobis_normalized`, which came out of this, is one
of the package's own scores by now.
"""

from collections.abc import Callable

import torch
from torch.nn.functional import normalize

from sona_pipeline import POST_HOC, Detector, energy

SHARPNESS = 0.3


def multi_mahalanobis_normalized(ood, detector: Detector):
    """Mahalanobis distances of the stages, with the mean activations of each stage divided by their length."""
    plain = POST_HOC["multi_mahalanobis"](ood, detector)

    class Normalized(type(plain)):
        def fit_structured(self, features: list[torch.Tensor], labels: torch.Tensor):
            return super().fit_structured([normalize(stage) for stage in features], labels)

        def predict_structured(self, features: list[torch.Tensor], device=None) -> torch.Tensor:
            return super().predict_structured([normalize(stage) for stage in features], device)

    return Normalized(plain.model)


def kl_matching_sharp(ood, detector: Detector):
    """KL matching with templates at temperature 0.3: near to one-hot, as those of an accurate classifier are."""

    class Sharp(ood.KLMatching):
        def fit_logits(self, logits: torch.Tensor, labels: torch.Tensor | None = None):
            return super().fit_logits(logits / SHARPNESS, labels)

    return Sharp(detector)


def ash_pruned(ood, detector: Detector):
    """ASH-P: the highest 10 % of the features stay, and are not scaled up. SCALE without its factor is the energy."""
    plain = POST_HOC["ash"](ood, detector)
    return ood.ASH(plain.backbone, plain.head, variant="ash-p", percentile=plain.percentile)


class EnergyAndKNN:
    """Energy plus `knn`, each less its mean and by its standard deviation over the images that it is fitted to."""

    def __init__(self, ood, detector: Detector):
        self.detector, self.knn = detector, POST_HOC["knn"](ood, detector)

    def to(self, device):
        self.knn.to(device)
        return self

    def fit(self, batches):
        self.knn.fit(batches)
        scores = torch.cat([self._both(pixels.to(self.detector.device)) for pixels, _ in batches])
        self.mean, self.std = scores.mean(dim=0), scores.std(dim=0)
        return self

    def predict(self, pixels: torch.Tensor) -> torch.Tensor:
        return ((self._both(pixels) - self.mean) / self.std).sum(dim=1)

    def _both(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.stack([energy(self.detector(pixels)), self.knn.predict(pixels)], dim=1)


REMEDIES: dict[str, Callable] = {
    "multi_mahalanobis_normalized": multi_mahalanobis_normalized,
    "kl_matching_sharp": kl_matching_sharp,
    "ash_pruned": ash_pruned,
    "energy_and_knn": EnergyAndKNN,
}
