"""Images in which what a classifier goes by is overdrawn or shuffled: by ASCOOD (Regmi 2026, arXiv 2411.10794)."""

from __future__ import annotations

from collections.abc import Callable

import torch

SHARE, LARGEST, LEAST = 0.1, 300.0, 30.0
"""Share of the values that are changed, and the factors of the gradient that the paper goes through."""
Classify = Callable[[torch.Tensor], torch.Tensor]
"""From images `[B, C, H, W]` in [0, 1] to logits."""


def overdrawn(
    images: torch.Tensor,
    labels: torch.Tensor,
    classify: Classify,
    deviation: torch.Tensor,
    factor: float | torch.Tensor,
) -> torch.Tensor:
    """Images `[B, C, H, W]` plus `factor` times the gradient of their labels' logits, where it is among the largest.

    Args:
        images: pixels in [0, 1]; what comes out may leave that range.
        labels: `[B]`.
        classify: gives logits.
        deviation: `[1, C, 1, 1]`, by which pixels are divided when they are normalized.
        factor: alpha, for normalized pixels; one, or `[B, 1, 1, 1]`.
    """
    slope = _slope(images, labels, classify, deviation)
    sizes = slope.abs().flatten(1)
    largest = sizes.topk(max(1, int(SHARE * sizes.shape[1])), dim=1).indices
    mask = torch.zeros_like(sizes).scatter_(1, largest, 1).view_as(images)
    return images + factor * slope * mask * deviation


def shuffled(
    images: torch.Tensor, labels: torch.Tensor, classify: Classify, deviation: torch.Tensor, order: torch.Tensor
) -> torch.Tensor:
    """Images `[B, C, H, W]` with the tenth of the pixels that speaks most for their labels in another order.

    Args:
        images, labels, classify, deviation: as of `overdrawn`.
        order: numbers `[B, H * W]` of any size; the pixels come in the order of as many as are needed of them.
    """
    slope = _slope(images, labels, classify, deviation).exp().sum(dim=1).flatten(1)
    places = slope.topk(max(1, int(SHARE * slope.shape[1])), dim=1).indices
    came = order[:, : places.shape[1]].argsort(dim=1).to(places.device)
    places, sources = (one[:, None].expand(-1, images.shape[1], -1) for one in (places, places.gather(1, came)))
    flat = images.flatten(2)
    return flat.scatter(2, places, flat.gather(2, sources)).view_as(images)


def _slope(images: torch.Tensor, labels: torch.Tensor, classify: Classify, deviation: torch.Tensor) -> torch.Tensor:
    """The gradient of the labels' logits by normalized pixels."""
    with torch.enable_grad():
        moved = images.detach().requires_grad_()
        logits = classify(moved).gather(1, labels[:, None])
        return torch.autograd.grad(logits.sum(), moved)[0] * deviation
