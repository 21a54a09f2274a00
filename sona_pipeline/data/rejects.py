"""Images of which there is no outlier: why, and whether another run may make one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

MAY_PASS = "may_pass"
"""The column of `rejects.jsonl` that says of a reject that another run may make an outlier of the image."""
_PASSED_IN_0_1_0 = re.compile(r": \[Errno \d+\] |became NaN or|is not finite")
"""Reasons of this kind that version 0.1.0 recorded without that column."""


def may_pass(reject: dict) -> bool:
    """Whether an image was rejected for a reason that may pass: a missing file, or numbers that overflowed."""
    return reject.get(MAY_PASS, False) or bool(_PASSED_IN_0_1_0.search(reject["reason"]))


def reasons_of(rejects: Iterable[dict]) -> Counter[str]:
    """How many images have no outlier, by reason without file names and measured values."""
    return Counter(_kind(row["reason"]) for row in rejects)


def _kind(reason: str) -> str:
    if reason.endswith("does not exist") or "[Errno 2]" in reason:
        return "does not exist"
    if reason.endswith("may not be read") or "[Errno 13]" in reason:
        return "may not be read"
    if "cannot be read" in reason:
        return "cannot be read as an image"
    return re.sub(r"looks like .*", "looks like another outlier", re.sub(r" [-\d.e]+ ([<>])", r" \1", reason))
