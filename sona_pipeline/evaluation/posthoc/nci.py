"""NCI (Liu & Qin 2025): nearness to the weights of the predicted class, and length of the features, negated."""

from __future__ import annotations

from sona_pipeline.evaluation.posthoc.base import Known, Method, Scorer, pytorch_ood


def fit(known: Known, alpha: float = 0.0001) -> Scorer:
    """Features are taken from the mean of the training images for the first; `alpha` is the weight of the second."""
    method = pytorch_ood().NCI(None, known.detector.network.head, alpha=alpha)
    method.to(known.detector.device).fit_features(known.training.features)
    return lambda seen: method.predict_features(seen.features)


METHOD = Method(fit, {"alpha": (0.0001, 0.001, 0.01, 0.1)})
