"""VRA (Xu et al. 2023): energy of features that are cut off at two percentiles of all features of ID images."""

from __future__ import annotations

from sona_pipeline.evaluation.posthoc.base import Known, Method, Scorer, energy
from sona_pipeline.evaluation.posthoc.percentiles import percentile_of


def fit(known: Known, percentile_high: float = 90, percentile_low: float = 10) -> Scorer:
    """The percentiles are over all features of all validation images together, as in OpenOOD."""
    lowest, highest = (percentile_of(known.validation.features, q) for q in (percentile_low, percentile_high))
    head = known.detector.network.head
    return lambda seen: energy(head(seen.features.clamp(lowest, highest)))


METHOD = Method(fit, {"percentile_high": (85, 90, 95, 99), "percentile_low": (1, 5, 10, 15)}, on_validation=True)
