"""AdaSCALE (Regmi 2025): SCALE and LTS with a percentile for each image, higher the less a small perturbation moves it.

The pixels that matter least for the predicted logit are moved along its gradient. The highest features of OOD images
shift more by that than those of ID images. With f and g the features before and after, Q' = sum of max(g, 0) over the
`k1` % highest of f + weight * sum of |f - g| over the `k2` % highest, and F the distribution of Q' among ID images, an
image has the percentile p = low + (1 - F(Q')) (high - low). With r the sum of its features over the sum of those above
p, AdaSCALE-A scores the energy of the features times exp(r), AdaSCALE-L that of the logits times r^2.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import combinations

import torch

from sona_pipeline.detection.detector import Detector
from sona_pipeline.evaluation.posthoc.base import Known, Method, Scorer, Seen, energy

STEP = 0.5
"""By which a pixel is moved, in standard deviations of the pixels."""
GRID = {"percentiles": tuple(combinations((60, 65, 70, 75, 80, 85, 90, 95, 99), 2))}
Energy = Callable[[Detector, torch.Tensor, torch.Tensor], torch.Tensor]


def of_features(detector: Detector, features: torch.Tensor, ratio: torch.Tensor) -> torch.Tensor:
    """Energy `[B]` of features `[B, D]` times exp(r), r of shape `[B, 1]`: AdaSCALE-A."""
    return energy(detector.network.head(features * ratio.exp()))


def of_logits(detector: Detector, features: torch.Tensor, ratio: torch.Tensor) -> torch.Tensor:
    """Energy `[B]` of the logits of features `[B, D]` times r^2: AdaSCALE-L."""
    return energy(detector.network.head(features) * ratio**2)


def fit(
    scaled: Energy,
    known: Known,
    percentiles: tuple[float, float] = (75, 85),
    k1: float = 5,
    k2: float = 1,
    shift_weight: float = 10,
    pixels: float = 0.05,
) -> Scorer:
    """The distribution F is that of the validation images.

    Args:
        scaled: `of_features` or `of_logits`.
        known: see `Known`.
        percentiles: the lowest and the highest that an image can have.
        k1, k2: percent of the features, one at least, whose values and whose shifts are added up.
        shift_weight: of the shifts.
        pixels: share of the values of all pixels and channels that is moved.
    """
    detector = known.detector

    def movedness(seen: Seen) -> torch.Tensor:
        return seen.once(("movedness", k1, k2, shift_weight, pixels), partial(measured, seen))

    def measured(seen: Seen) -> torch.Tensor:
        moved = detector.features(perturbed(detector, seen.pixels, pixels))
        values, shifts = moved.relu(), (moved - seen.features).abs()
        order = seen.features.argsort(dim=1, descending=True)
        first, second = (order[:, : max(1, int(share / 100 * order.shape[1]))] for share in (k1, k2))
        return values.gather(1, first).sum(dim=1) + shift_weight * shifts.gather(1, second).sum(dim=1)

    @torch.no_grad()
    def score(seen: Seen) -> torch.Tensor:
        low, high = percentiles
        share = torch.searchsorted(usual, movedness(seen), right=True) / len(usual)
        return scaled(detector, seen.features, ratio_above(seen.features.relu(), low + (1 - share) * (high - low)))

    with torch.no_grad():
        usual = torch.cat([movedness(seen) for seen, _ in known.validation_images()]).sort().values
    return score


def perturbed(detector: Detector, pixels: torch.Tensor, share: float) -> torch.Tensor:
    """Pixels of which the share that matters least for the predicted logit is moved along its gradient."""
    with torch.enable_grad():
        moved = pixels.detach().requires_grad_()
        (slope,) = torch.autograd.grad(detector(moved).amax(dim=1).sum(), moved)
    by_value = (slope * detector.std).abs().flatten(1)  # of normalized pixels
    least = by_value.topk(int(share * by_value.shape[1]), dim=1, largest=False).indices
    mask = torch.zeros_like(by_value).scatter_(1, least, 1).view_as(pixels)
    return pixels + STEP * detector.std * slope.sign() * mask


def ratio_above(features: torch.Tensor, percentile: torch.Tensor) -> torch.Tensor:
    """Sum of features `[B, D]` over the sum of those above the percentile `[B]` of their image, one at least."""
    count = features.shape[1]
    kept = (count - (count * percentile / 100).round()).clamp(min=1)
    highest = features.sort(dim=1, descending=True).values
    above = highest * (torch.arange(count, device=features.device) < kept[:, None])
    return features.sum(dim=1, keepdim=True) / above.sum(dim=1, keepdim=True)


A = Method(partial(fit, of_features), GRID, needs_images=True, on_validation=True)
L = Method(partial(fit, of_logits), GRID, needs_images=True, on_validation=True)
