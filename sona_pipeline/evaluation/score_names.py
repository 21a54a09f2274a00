"""Names of scores as they are given: checked, and OpenOOD's names taken for ours."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from sona_pipeline.detection.scores import OWN_SCORES

ALL = "all"
OPENOOD_NAMES = {
    "ash": "ash_b",
    "ebo": "energy",
    "klm": "kl_matching",
    "mds": "mahalanobis",
    "mls": "max_logit",
    "rmds": "rmd",
    "temp_scaling": "temperature_scaling",
}
"""What OpenOOD calls some of our scores."""


def score_names(names: Sequence[str]) -> list[str]:
    """Our names of the scores, each once and in their order; those of every score for "all".

    Args:
        names: of `OWN_SCORES`, of `POST_HOC`, those that OpenOOD has for them, or "all".

    Raises:
        ValueError: there is no such score; with the nearest names.
    """
    from sona_pipeline.evaluation.posthoc import POST_HOC

    every = [*OWN_SCORES, *POST_HOC]
    found: list[str] = []
    for name in names:
        if name not in {ALL, *OPENOOD_NAMES, *every}:
            near = get_close_matches(name.lower(), [*every, *OPENOOD_NAMES], n=3, cutoff=0.5)
            way = f"did you mean {' or '.join(map(repr, near))}?" if near else f"choose from {[ALL, *every]}"
            raise ValueError(f"no score is named {name!r}: {way}")
        found += every if name == ALL else [OPENOOD_NAMES.get(name, name)]
    return list(dict.fromkeys(found))
