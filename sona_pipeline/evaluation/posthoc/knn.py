"""Distance to the k-th nearest training image among normalized features (Sun et al. 2022)."""

from __future__ import annotations

from sona_pipeline.evaluation.posthoc.base import Known, Method, Scorer, pytorch_ood


def fit(known: Known, k: int = 50) -> Scorer:
    """With fewer than `k` images it is the distance to the farthest."""
    features, labels = known.training.features, known.training.labels
    method = pytorch_ood().KNN(None, k=min(k, len(features))).fit_features(features.cpu(), labels.cpu())
    return lambda seen: method.predict_features(seen.features)


METHOD = Method(fit, {"k": (50, 100, 200, 500, 1000)})
