"""ViM (Wang et al. 2022): length of the features outside the principal subspace, as a logit, and the energy."""

from __future__ import annotations

from sona_pipeline.evaluation.posthoc.base import Known, Method, Scorer, pytorch_ood


def fit(known: Known, dim: int = 256) -> Scorer:
    """The principal subspace has `dim` dimensions; if there are no more features than that, half as many."""
    head = known.detector.network.head
    width, bias = head.in_features, head.weight.new_zeros(head.out_features) if head.bias is None else head.bias
    method = pytorch_ood().ViM(None, dim if dim < width else width // 2, head.weight, bias)
    method.to(known.detector.device).fit_features(known.training.features, known.training.labels)
    return lambda seen: method.predict_features(seen.features)


METHOD = Method(fit, {"dim": (256, 1000)})
