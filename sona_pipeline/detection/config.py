"""The config.json of a detector, checked before anything is built from it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any


def check_config(path: Path, known: Collection[str], place: object) -> None:
    """Check what a detector is to be built from.

    Args:
        path: of the file.
        known: the names of the settings.
        place: what messages call the detector.

    Raises:
        FileNotFoundError: the file is not of a detector.
        ValueError: it is no JSON, has a setting that this version does not know, or a value of another kind.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"config.json of {place} is damaged: copy or download it again ({error})") from error
    if not isinstance(config, dict) or "network" not in config:
        raise FileNotFoundError(f"{place} holds a model, but no detector: give a folder that `sona train` wrote")
    if unknown := sorted(set(config) - set(known)):
        raise ValueError(
            f"config.json of {place} has settings that this version does not know: {', '.join(unknown[:5])}; it is of"
            " another version: pip install --upgrade sona-pipeline, or take the settings out"
        )
    for name, (is_right, words) in _KINDS.items():
        if name in config and not is_right(config[name]):
            raise ValueError(f"`{name}` in config.json of {place} is {config[name]!r}, but has to be {words}")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_parts(value: Any) -> bool:
    return isinstance(value, dict) and set(value) == {"energy", "knn"} and all(map(_is_spread, value.values()))


def _is_spread(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)) and value[1] > 0


def _is_colour(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(_is_number, value))


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(name, str) for name in value)


_KINDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "classes": (_is_names, "a list of names"),
    "network": (lambda value: isinstance(value, str), "a name"),
    "image_size": (_is_count, "1 or more"),
    "crop_pct": (lambda value: _is_number(value) and 0 < value <= 1, "above 0 and at most 1"),
    "mean": (_is_colour, "three numbers"),
    "std": (lambda value: _is_colour(value) and min(value) > 0, "three numbers above 0"),
    "temperature": (lambda value: _is_number(value) and value > 0, "above 0"),
    "threshold": (lambda value: value is None or _is_number(value), "a number or null"),
    "id_quantiles": (
        lambda value: value is None or (isinstance(value, list) and len(value) == 101 and all(map(_is_number, value))),
        "101 numbers or null",
    ),
    "feature_scale": (lambda value: value is None or (_is_number(value) and value > 0), "above 0 or null"),
    "heads": (lambda value: value in (1, 2), "1 or 2"),
    "id_rate": (lambda value: value is None or (_is_number(value) and 0 < value < 1), "between 0 and 1, or null"),
    "class_thresholds": (
        lambda value: value is None or (isinstance(value, list) and all(x is None or _is_number(x) for x in value)),
        "a number or null a class, or null",
    ),
    "neighbours": (lambda value: value is None or _is_count(value), "1 or more, or null"),
    "nearest": (_is_count, "1 or more"),
    "score_parts": (
        lambda value: value is None or _is_parts(value),
        "a mean and a standard deviation above 0 of energy and knn, or null",
    ),
    "network_config": (lambda value: value is None or isinstance(value, dict), "an object or null"),
}
