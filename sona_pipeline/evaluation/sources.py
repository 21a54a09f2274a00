"""Detectors and test images of an evaluation, opened from where its settings say they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sona_pipeline.data.image_set import ImageSet
from sona_pipeline.data.images import open_images
from sona_pipeline.detection.scores import SCORES
from sona_pipeline.evaluation import openood
from sona_pipeline.evaluation.score_table import TestSets
from sona_pipeline.evaluation.settings import TestImages


class Opened(NamedTuple):
    """Test sets, and the ID images that post-hoc scores are fitted to."""

    sets: TestSets
    fit: ImageSet | None
    validation: ImageSet | None


def open_test_images(source: TestImages, scores: Sequence[str]) -> Opened:
    """What detectors are tested on; of a benchmark, also what the `scores` are fitted to if nothing else is named.

    Args:
        source: where the images lie.
        scores: names of `detection.scores.SCORES` or of `posthoc.POST_HOC`.

    Raises:
        FileNotFoundError: something is not there.
        ValueError: there are no test images, or sets and a benchmark exclude each other.
    """
    fit = open_images(source.fit, image_root=source.image_root) if source.fit else None
    validation = open_images(source.validation, image_root=source.image_root) if source.validation else None
    if source.benchmark:
        return _open_benchmark(source, source.benchmark, scores, fit, validation)
    if not source.id:
        raise ValueError("there are no test images: give --id with --near and --far, or --benchmark with --root")
    known = open_images(source.id, split=source.split, image_root=source.image_root)
    sets = TestSets(known, *(_named(texts, source) for texts in (source.near, source.far, source.shifted)))
    return Opened(sets, fit, validation)


def _open_benchmark(
    source: TestImages, name: str, scores: Sequence[str], fit: ImageSet | None, validation: ImageSet | None
) -> Opened:
    if source.id or source.near or source.far or source.shifted or not source.root:
        raise ValueError("--benchmark brings its own test sets: give --root with it, and no --id, --near or --far")
    groups = ("near_ood", "far_ood", *(["covariate"] if source.full_spectrum else []))
    known = openood.open_part(name, source.root, "test")
    sets = TestSets(known, *(openood.open_group(name, source.root, group) for group in groups))
    if fit is None and not set(scores) <= set(SCORES):
        fit = openood.open_part(name, source.root, "train")
        validation = openood.open_part(name, source.root, "validation") if validation is None else validation
    return Opened(sets, fit, validation)


def _named(texts: Sequence[str], source: TestImages) -> dict[str, ImageSet]:
    places = [name_and_place(text) for text in texts]
    if twice := [name for name, count in Counter(name for name, _ in places).items() if count > 1]:
        raise ValueError(f"{twice[0]!r} is the name of several test sets of one kind: give each its own name")
    return {name: open_images(place, split=source.split, image_root=source.image_root) for name, place in places}


def methods_of(detectors: Sequence[str]) -> list[tuple[str, str]]:
    """Method and place of each DIR or NAME=DIR; a DIR without a name is a method by itself, named after its folder.

    Raises:
        ValueError: two detectors would have one name by chance.
    """
    is_bare = [Path(text).exists() or "=" not in text for text in detectors]
    found = [
        (Path(text).resolve().name, text) if bare else name_and_place(text) for text, bare in zip(detectors, is_bare)
    ]
    count = Counter(name for name, _ in found)
    for (name, place), bare in zip(found, is_bare):
        if bare and count[name] > 1:
            raise ValueError(
                f"{place} would be named {name!r}, as another detector is: give NAME=DIR for each, with one name for"
                " seeds of one method"
            )
    return found


def name_and_place(text: str) -> tuple[str, str]:
    """NAME and PLACE of 'NAME=PLACE'; ValueError if it is not of that form."""
    name, sign, place = text.partition("=")
    if not (name and sign and place):
        raise ValueError(f"{text!r} is not of the form NAME=PLACE")
    return name, place
