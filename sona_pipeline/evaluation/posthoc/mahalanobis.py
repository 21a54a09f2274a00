"""Mahalanobis distance to the nearest class mean (Lee et al. 2018), and its variants on penultimate features."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import normalize

from sona_pipeline.evaluation.posthoc.base import Known, Method, Scorer, pytorch_ood
from sona_pipeline.evaluation.posthoc.precision import double_precision


def _distances(features: torch.Tensor, labels: torch.Tensor) -> Any:
    """pytorch-ood's method, fitted to features `[N, D]` and class indices `[N]`."""
    with double_precision():
        return pytorch_ood().Mahalanobis(None).to(features.device).fit_features(features.double(), labels)


def fit(known: Known) -> Scorer:
    """Of the features as they are."""
    method = _distances(known.training.features, known.training.labels)
    return lambda seen: method.predict_features(seen.features.double())


def fit_normalized(known: Known) -> Scorer:
    """Of features divided by their length, as Mahalanobis++ (Mueller & Hein 2025) has it.

    Outlier exposure gives OOD images short features, which without that lie between those of ID images.
    """
    method = _distances(normalize(known.training.features), known.training.labels)
    return lambda seen: method.predict_features(normalize(seen.features).double())


def fit_odin(known: Known, noise: float = 0.0014) -> Scorer:
    """Of images that are moved towards the nearest class by a step of `noise` on pixels in [0, 1]."""
    method = pytorch_ood().MahalanobisODIN(known.detector.features, eps=noise)
    method._base = _distances(known.training.features, known.training.labels)
    method._base.encoder = known.detector.features
    return lambda seen: method.to(known.detector.device).predict(seen.pixels)


METHOD = Method(fit)
NORMALIZED = Method(fit_normalized)
ODIN = Method(fit_odin, needs_images=True)
