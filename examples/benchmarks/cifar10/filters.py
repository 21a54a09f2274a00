"""Filters of other methods (`sona generate --reject`), by which outliers of a set that is there are not trained on."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from sona_pipeline import Detector, OutlierPairs

BATCH = 250


class Told(NamedTuple):
    """What a detector says of outliers, `[B]` each: the probability of the source's class, that of the likeliest class,
    and the share of ID validation images with a lower score."""

    of_source: torch.Tensor
    of_likeliest: torch.Tensor
    id_quantile: torch.Tensor


FILTERS: dict[str, Callable[[Told], torch.Tensor]] = {
    "rodeo": lambda told: told.of_source <= 0.5,
    "bad-ood": lambda told: (told.of_likeliest >= 0.3) & (told.of_likeliest <= 0.5),
    "gcos": lambda told: (told.id_quantile >= 0.95) & (told.id_quantile <= 0.99),
}
"""Whether an outlier stays."""


@torch.no_grad()
def filtered(pairs: OutlierPairs, stays: Callable[[Told], torch.Tensor], detector: Detector) -> OutlierPairs:
    """The pairs, with strength 0 for outliers that a filter leaves out; their sources stay ID images.

    Args:
        pairs: outliers with their sources.
        stays: one of `FILTERS`.
        detector: a calibrated one, of cross-entropy.
    """
    labels, strengths = torch.tensor(pairs.images.labels), []
    for start in range(0, len(pairs.outliers), BATCH):
        places = range(start, min(start + BATCH, len(pairs.outliers)))
        logits, scores = detector.scored(detector.pixels(pairs.outliers.image(k) for k in places))
        shares = logits.softmax(dim=1)
        quantiles = np.interp(scores.numpy(), detector.id_quantiles, np.linspace(0, 1, 101))
        own = shares.gather(1, labels[list(places), None])[:, 0]
        kept = stays(Told(own, shares.amax(dim=1), torch.from_numpy(quantiles))).tolist()
        strengths += [pairs.strengths[k] * is_kept for k, is_kept in zip(places, kept)]
    return replace(pairs, strengths=tuple(strengths))
