"""Negative log likelihood of a Gaussian for each class, with a covariance of its own, on penultimate features."""

from __future__ import annotations

from sona_pipeline.evaluation.posthoc.base import Known, Method, Scorer, pytorch_ood


def fit(known: Known, reg: float = 1e-3) -> Scorer:
    """`reg` is added to the diagonal of each covariance: a class may have fewer images than there are features."""
    method = pytorch_ood().GMM(None, reg)
    method.to(known.detector.device).fit_features(known.training.features, known.training.labels)
    return lambda seen: method.predict_features(seen.features)


METHOD = Method(fit, {"reg": (1e-6, 1e-4, 1e-3, 1e-2, 1e-1)})
