"""OpenOOD's "mds_ensemble", as its configuration has it: Mahalanobis distance of the mean activations of the stem.

The images are moved towards the nearest class first. OpenOOD divides that step by 0.5 instead of the standard deviation
of the pixels. See `multi_mahalanobis` for the sum over all stages.
"""

from __future__ import annotations

import torch

from sona_pipeline.evaluation.posthoc.base import Known, Method, Scorer, Seen

STEP_DIVISOR = 0.5


def fit(known: Known, noise: float = 0.0014) -> Scorer:
    """The step is `noise` / 0.5 on normalized pixels."""
    detector = known.detector
    stem = detector.network.stages()[0]

    def stem_means(pixels: torch.Tensor) -> torch.Tensor:
        return stem((pixels - detector.mean) / detector.std).mean(dim=(2, 3)).double()

    with torch.no_grad():
        batches = [(stem_means(seen.pixels), labels) for seen, labels in known.training_images()]
    means, labels = (torch.cat(part) for part in zip(*batches))
    centers = torch.stack([means[labels == label].mean(dim=0) for label in range(len(detector.classes))])
    gaps = means - centers[labels]
    # single precision decides which directions count as empty, as it does in OpenOOD
    rank_tolerance = means.shape[1] * torch.finfo(torch.float32).eps
    precision = torch.linalg.pinv(gaps.T @ gaps / len(gaps), hermitian=True, rtol=rank_tolerance)

    def distance(pixels: torch.Tensor) -> torch.Tensor:
        gaps = stem_means(pixels)[:, None] - centers
        return 0.5 * ((gaps @ precision) * gaps).sum(dim=2).amin(dim=1)

    def score(seen: Seen) -> torch.Tensor:
        with torch.enable_grad():
            pixels = seen.pixels.detach().requires_grad_()
            (slope,) = torch.autograd.grad(distance(pixels).sum(), pixels)
        step = torch.where(slope >= 0, 1.0, -1.0) * noise / STEP_DIVISOR * detector.std
        return distance(pixels.detach() - step)

    return score


METHOD = Method(fit, needs_images=True)
