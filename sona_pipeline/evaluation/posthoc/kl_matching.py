"""KL matching (Hendrycks et al. 2022): divergence of the softmax from the nearest mean softmax of a predicted class."""

from __future__ import annotations

from sona_pipeline.evaluation.posthoc.base import Known, Method, Scorer, pytorch_ood


def fit(known: Known) -> Scorer:
    """The means are over validation images."""
    method = pytorch_ood().KLMatching(None).to(known.detector.device)
    method.fit_logits(known.validation.logits, known.validation.labels)
    return lambda seen: method.predict_logits(seen.logits)


METHOD = Method(fit, on_validation=True)
