"""SHE (Zhang et al. 2023): product of the features with the mean features of the predicted class."""

from __future__ import annotations

from sona_pipeline.evaluation.posthoc.base import Known, Method, Scorer, pytorch_ood


def fit(known: Known) -> Scorer:
    """The means are over training images that the network classifies correctly."""
    method = pytorch_ood().SHE(None, known.detector.network.head)
    method.fit_features(known.training.features, known.training.labels)
    return lambda seen: method.predict_features(seen.features)


METHOD = Method(fit)
