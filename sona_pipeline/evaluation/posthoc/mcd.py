"""MCD (Yu & Aizawa 2019): distance between what the two heads of a detector say; nothing is fitted."""

from __future__ import annotations

import torch

from sona_pipeline.evaluation.posthoc.base import Known, Method, Scorer, Seen


def fit(known: Known) -> Scorer:
    """The sum of the absolute differences of the probabilities.

    Raises:
        ValueError: the detector has one head.
    """
    second = known.detector.network.second_head
    if second is None:
        raise ValueError("the detector has one head, and the score 'mcd' compares two: train with --method mcd")

    def score(seen: Seen) -> torch.Tensor:
        return (seen.logits.softmax(dim=1) - second(seen.features).softmax(dim=1)).abs().sum(dim=1)

    return score


METHOD = Method(fit)
