"""SCALE (Xu et al. 2024): energy of features times exp(sum of all / sum of the highest); nothing is fitted."""

from __future__ import annotations

from sona_pipeline.evaluation.posthoc.base import Known, Method, Scorer, pytorch_ood


def fit(known: Known, percentile: float = 85) -> Scorer:
    """The highest features are those above the percentile of an image."""
    head = known.detector.network.head
    method = pytorch_ood().SCALE(None, lambda maps: head(maps.flatten(1)), percentile / 100)
    return lambda seen: method.predict_feature_maps(seen.features[:, :, None, None].clone())


METHOD = Method(fit, {"percentile": (65, 70, 75, 80, 85, 90, 95)})
