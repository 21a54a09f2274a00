"""Parameters of post-hoc scores, chosen by ID and OOD validation images as in OpenOOD's tables."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import torch

from sona_pipeline.evaluation.metrics import ood_metrics
from sona_pipeline.evaluation.posthoc import POST_HOC, Fitted, fitted
from sona_pipeline.evaluation.posthoc.base import Batches, Found, Known, Seen

ROWS = 4096
"""Features that are scored at once."""


class Trial:
    """The images that parameters are tried on: validation images of `known`, and OOD images that are no test images."""

    def __init__(self, known: Known, ood: Batches) -> None:
        self.known, self._ood = known, ood
        self._ood_features: torch.Tensor | None = None
        self._found: Found = defaultdict(dict)

    def id_images(self, pixels: bool) -> Iterator[Seen]:
        """ID images, with their pixels or with their features only."""
        if pixels:
            return (seen for seen, _ in self.known.validation_images())
        return self._chunks(self.known.validation.features)

    def ood_images(self, pixels: bool) -> Iterator[Seen]:
        """OOD images in the same way."""
        if pixels:
            batches = enumerate(batch for batch, _ in self._ood)
            return (Seen(self.known.detector, batch, found=self._found[number]) for number, batch in batches)
        if self._ood_features is None:
            self._ood_features = torch.cat([seen.features for seen in self.ood_images(pixels=True)])
        return self._chunks(self._ood_features)

    def _chunks(self, features: torch.Tensor) -> Iterator[Seen]:
        return (Seen(self.known.detector, features=part) for part in features.split(ROWS))


def candidates(name: str) -> list[dict[str, Any]]:
    """What a search tries for a score, in OpenOOD's order: the first parameter changes fastest."""
    grid = POST_HOC[name].grid
    rows = product(*reversed(list(grid.values()))) if grid else ()
    return [dict(zip(grid, reversed(row))) for row in rows]


def searched(name: str, trial: Trial) -> Fitted:
    """The score with the parameters of the highest AUROC on the trial's images; the first of equals.

    A score without a grid is fitted with its defaults.

    Raises:
        ValueError: see `fitted`; or no candidate gives finite scores.
    """
    best: Fitted | None = None
    for parameters in candidates(name):
        found = fitted(name, trial.known, **parameters)
        auroc = _auroc(found, trial, POST_HOC[name].needs_images)
        if math.isfinite(auroc) and (best is None or auroc > (best.validation_auroc or 0)):
            best = replace(found, validation_auroc=auroc)
    if best is None and candidates(name):
        raise ValueError(f"no parameters of {name} give finite scores on the validation images: leave it out")
    return best or fitted(name, trial.known)


def _auroc(found: Fitted, trial: Trial, needs_images: bool) -> float:
    """In percent; NaN if a score is not finite."""
    scores = [
        np.concatenate([found(seen).cpu().double().numpy() for seen in images(needs_images)])
        for images in (trial.id_images, trial.ood_images)
    ]
    return ood_metrics(*scores)["auroc"] if all(np.isfinite(part).all() for part in scores) else math.nan
