"""Entropy of the softmax (Macedo et al. 2021); nothing is fitted."""

from __future__ import annotations

from sona_pipeline.evaluation.posthoc.base import Known, Method, Scorer, pytorch_ood


def fit(known: Known) -> Scorer:
    """In nats."""
    method = pytorch_ood().Entropy(None)
    return lambda seen: method.predict_logits(seen.logits)


METHOD = Method(fit)
