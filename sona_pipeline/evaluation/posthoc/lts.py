"""LTS (Djurisic et al. 2024): energy of the logits times (sum of all features / sum of the highest)^2; fits nothing."""

from __future__ import annotations

from sona_pipeline.evaluation.posthoc.base import Known, Method, Scorer, pytorch_ood


def fit(known: Known, percentile: float = 95) -> Scorer:
    """The highest features are those above the percentile of an image."""
    method = pytorch_ood().LTS(None, known.detector.network.head, 1 - percentile / 100)
    return lambda seen: method.predict_features(seen.features)


METHOD = Method(fit, {"percentile": (65, 70, 75, 80, 85, 90, 95)})
