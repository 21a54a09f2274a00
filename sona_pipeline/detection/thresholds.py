"""Thresholds of scores: what a wanted share of ID images does not exceed, over all classes or in each."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

SMALLEST = 20
"""Images that a class has to have at least for a threshold of its own."""


def check_rate(id_rate: float) -> None:
    """Raise ValueError for a rate of accepted ID images that is not in (0, 1)."""
    if not 0 < id_rate < 1:
        raise ValueError(f"the rate of accepted ID images is {id_rate}, but has to be between 0 and 1")


def false_alarms_of(id_rate: float) -> float:
    """The share of ID images that is flagged where `id_rate` is accepted."""
    return round(1 - id_rate, 12)


def threshold_at(scores: torch.Tensor, id_rate: float) -> float:
    """The lowest of the scores `[N]` that at least the share `id_rate` of them does not exceed."""
    ordered = scores.double().sort().values
    accepted = math.ceil(round(id_rate * len(ordered), 9))  # 0.55 * 100 is 55.00000000000001
    return ordered[max(1, accepted) - 1].item()


def fewest(id_rate: float) -> int:
    """Images that a class needs for a threshold of its own: 20, or as many as one false alarm comes in."""
    return max(SMALLEST, math.ceil(1 / false_alarms_of(id_rate)))


def thresholds_by_class(
    scores: torch.Tensor, predicted: torch.Tensor, classes: Sequence[str], id_rate: float
) -> list[float | None]:
    """`threshold_at` of the scores of each predicted class; None for a class that has too few, see `fewest`.

    Args:
        scores: `[N]`.
        predicted: class indices `[N]`.
        classes: their names.
        id_rate: in (0, 1).

    Raises:
        ValueError: no class has enough.
    """
    parts = [scores[predicted == index] for index in range(len(classes))]
    sizes = list(map(len, parts))
    if max(sizes) < (needed := fewest(id_rate)):
        raise ValueError(
            f"a class needs {needed} images for a threshold of its own at an ID rate of {id_rate:g}, but the largest,"
            f" {classes[sizes.index(max(sizes))]!r}, has {max(sizes)}: give more images, or one threshold for all"
        )
    return [threshold_at(part, id_rate) if len(part) >= needed else None for part in parts]
