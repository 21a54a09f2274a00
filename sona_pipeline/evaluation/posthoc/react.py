"""ReAct (Sun et al. 2021): energy of features that are cut off at a percentile of all features of ID images."""

from __future__ import annotations

from sona_pipeline.evaluation.posthoc.base import Known, Method, Scorer, energy
from sona_pipeline.evaluation.posthoc.percentiles import percentile_of


def fit(known: Known, percentile: float = 90) -> Scorer:
    """Above the percentile over all features of all validation images, features are set to it."""
    highest = percentile_of(known.validation.features, percentile)
    head = known.detector.network.head
    return lambda seen: energy(head(seen.features.clamp(max=highest)))


METHOD = Method(fit, {"percentile": (85, 90, 95, 99)}, on_validation=True)
