"""Negative log likelihood of a Gaussian for each class, with a covariance of its own, on penultimate features."""

from __future__ import annotations

import torch

from sona_pipeline.evaluation.posthoc.base import Known, Method, Scorer, pytorch_ood

MOST = 1 << 30
"""Bytes that a prediction may take: it holds three tensors of classes x images x features in float64."""


def fit(known: Known, reg: float = 1e-3) -> Scorer:
    """`reg` is added to the diagonal of each covariance: a class may have fewer images than there are features."""
    method = pytorch_ood().GMM(None, reg)
    features, labels = known.training.features, known.training.labels
    method.to(known.detector.device).fit_features(features, labels)
    rows = max(1, MOST // (3 * len(known.detector.classes) * features.shape[1] * 8))
    return lambda seen: torch.cat([method.predict_features(part) for part in seen.features.split(rows)])


METHOD = Method(fit, {"reg": (1e-6, 1e-4, 1e-3, 1e-2, 1e-1)})
