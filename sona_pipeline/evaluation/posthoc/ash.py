"""ASH (Djurisic et al. 2023): energy of features of which only the highest stay; shaped per image, nothing is fitted.

OpenOOD runs ASH-B, and takes the pooled features as maps of one pixel, as is done here.
"""

from __future__ import annotations

from typing import Literal

from sona_pipeline.evaluation.posthoc.base import Known, Method, Scorer, pytorch_ood

PERCENTILES = (65, 70, 75, 80, 85, 90, 95)


def _shaped(known: Known, variant: Literal["ash-b", "ash-s"], percentile: float) -> Scorer:
    head = known.detector.network.head
    method = pytorch_ood().ASH(None, lambda maps: head(maps.flatten(1)), variant, percentile / 100)
    return lambda seen: method.predict_feature_maps(seen.features[:, :, None, None].clone())


def fit_b(known: Known, percentile: float = 90) -> Scorer:
    """ASH-B: the features above the percentile of an image all become the sum of its features by their number."""
    return _shaped(known, "ash-b", percentile)


def fit_s(known: Known, percentile: float = 90) -> Scorer:
    """ASH-S: those above it are multiplied by exp(sum of all features / sum of theirs)."""
    return _shaped(known, "ash-s", percentile)


B = Method(fit_b, {"percentile": PERCENTILES})
S = Method(fit_s, {"percentile": PERCENTILES})
