"""Rules that say which OOD labels may be drawn for the images of a class; a rule is one function and one line here.

A rule takes similarities of ID classes and OOD labels, `[classes, labels]`, higher = nearer, and gives the indices of
the labels that each class may get, `[classes, n]` with n of 1 or more.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sona_pipeline.common.registry import Registry

if TYPE_CHECKING:
    import numpy as np

Rule = Callable[["np.ndarray"], "np.ndarray"]
RULES: Registry[Rule] = Registry(
    {
        "random": "sona_pipeline.generation.label_rules.every:any_label",
        "close": "sona_pipeline.generation.label_rules.similarity:close_labels",
        "far": "sona_pipeline.generation.label_rules.similarity:far_labels",
    }
)
