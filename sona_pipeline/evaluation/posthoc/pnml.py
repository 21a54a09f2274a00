"""pNML (Bibas et al. 2021): how little the training features say of the direction of a feature, as a regret."""

from __future__ import annotations

from sona_pipeline.evaluation.posthoc.base import Known, Method, Scorer, pytorch_ood


def fit(known: Known) -> Scorer:
    """Of features divided by their length, also for the probabilities, as in the paper."""
    method = pytorch_ood().PNML(None, known.detector.network.head)
    method.to(known.detector.device).fit_features(known.training.features, known.training.labels)
    return lambda seen: method.predict_features(seen.features)


METHOD = Method(fit)
