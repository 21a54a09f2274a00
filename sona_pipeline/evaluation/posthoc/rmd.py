"""Relative Mahalanobis distance (Ren et al. 2021): that to the nearest class mean, less that to the mean of all."""

from __future__ import annotations

from sona_pipeline.evaluation.posthoc.base import Known, Method, Scorer, pytorch_ood
from sona_pipeline.evaluation.posthoc.precision import double_precision


def fit(known: Known) -> Scorer:
    """Of penultimate features."""
    features, labels = known.training.features, known.training.labels
    with double_precision():
        method = pytorch_ood().RMD(None).to(features.device).fit_features(features.double(), labels)
    return lambda seen: method.predict_features(seen.features.double())


METHOD = Method(fit)
