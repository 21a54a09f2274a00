"""Detectors and test images of an evaluation, opened from where its settings say they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sona_pipeline.common.places import check_once, real_place
from sona_pipeline.data.image_set import ImageSet, are_same, check_there
from sona_pipeline.data.images import open_images
from sona_pipeline.detection.scores import OWN_SCORES
from sona_pipeline.evaluation import openood
from sona_pipeline.evaluation.posthoc import POST_HOC
from sona_pipeline.evaluation.score_table import TestSets
from sona_pipeline.evaluation.settings import TestImages

_KINDS = ("near", "far", "shifted")
_CHOSEN_BY_TESTS = "are test images, by which nothing may be chosen: give other images"


class Opened(NamedTuple):
    """What an evaluation needs.

    Attributes:
        sets: the test sets.
        fit, validation: ID images that post-hoc scores are fitted to.
        search: OOD images that parameters are chosen by.
        leaderboard: the benchmark whose leaderboard there are to be rows for.
    """

    sets: TestSets
    fit: ImageSet | None = None
    validation: ImageSet | None = None
    search: ImageSet | None = None
    leaderboard: str | None = None


def open_test_images(source: TestImages, scores: Sequence[str], search: bool = False) -> Opened:
    """What detectors are tested on; of a benchmark, also what the `scores` are fitted to if nothing else is named.

    Args:
        source: where the images lie.
        scores: names of `detection.scores.OWN_SCORES` or of `posthoc.POST_HOC`.
        search: also open what parameters of scores are chosen by.

    Raises:
        FileNotFoundError: something is not there.
        ValueError: there are no test images, sets and a benchmark exclude each other, there is nothing to search or
            nothing to search by, or it is test images.
    """
    _check_search(source, scores, search)
    fit = _open(source, source.fit, "train") if source.fit else None
    validation = _open(source, source.validation, source.validation_split) if source.validation else None
    ood = (
        _open(source, source.validation_ood, source.validation_split, labelled=False) if source.validation_ood else None
    )
    if source.benchmark:
        return _open_benchmark(source, source.benchmark, scores, search, (fit, validation, ood))
    if source.leaderboard:
        raise ValueError("--leaderboard is of OpenOOD's benchmarks: give --benchmark and --root, or leave it out")
    if not source.id:
        raise ValueError("there are no test images: give --id with --near and --far, or --benchmark with --root")
    known = _open(source, source.id, source.split)
    opened = Opened(TestSets(known, *open_named(source)), fit, validation, ood)
    for _, _, images in opened.sets:
        check_there(images)
    _check_chosen_by(source, opened)
    return opened


def open_named(source: TestImages) -> tuple[dict[str, ImageSet], ...]:
    """The near-OOD, far-OOD and shifted images by their names; ValueError if a name or a place is given twice."""
    given = [(kind, text) for kind in _KINDS for text in getattr(source, kind)]
    check_once((f"--{kind} {text}", name_and_place(text)[1]) for kind, text in given)
    return tuple(_named(getattr(source, kind), source, kind == "shifted") for kind in _KINDS)


def _open(source: TestImages, place: str, split: str, labelled: bool = True) -> ImageSet:
    return open_images(
        place,
        split=split,
        image_column=source.image_column,
        label_column=source.label_column,
        image_root=source.image_root,
        labelled=labelled,
    )


def _check_search(source: TestImages, scores: Sequence[str], search: bool) -> None:
    """Raise ValueError for a search without images of its own, or without anything to search."""
    if not search:
        if source.validation_ood:
            raise ValueError("--validation-ood is for --search: give that, too, or leave both away")
        return
    if not any(POST_HOC[score].grid for score in scores if score in POST_HOC):
        able = [name for name, method in POST_HOC.items() if method.grid]
        raise ValueError(f"--search finds no parameters of {list(scores)}: give --score one or more of {able}")
    if not source.benchmark and not (source.validation and source.validation_ood):
        raise ValueError(
            "--search tries parameters on ID and OOD images that are no test images: give --validation and"
            " --validation-ood"
        )


def _check_chosen_by(source: TestImages, opened: Opened) -> None:
    """Raise ValueError if scores would be fitted to test images, or parameters chosen by them."""
    tests = [(source.id, opened.sets.id)] if source.id else []
    for kind, sets in zip(_KINDS, (opened.sets.near, opened.sets.far, opened.sets.covariate)):
        tests += [(place, sets[name]) for name, place in map(name_and_place, getattr(source, kind))]
    chosen_by = (
        ("--validation", source.validation, opened.validation),
        ("--validation-ood", source.validation_ood, opened.search),
    )
    for option, place, images in chosen_by:
        for test, others in tests:
            if place and images and real_place(place) == real_place(test) and are_same(images, others):
                raise ValueError(f"{option} {place} {_CHOSEN_BY_TESTS}, or another --validation-split")


def _open_benchmark(
    source: TestImages,
    name: str,
    scores: Sequence[str],
    search: bool,
    given: tuple[ImageSet | None, ImageSet | None, ImageSet | None],
) -> Opened:
    if source.id or source.near or source.far or source.shifted or not source.root:
        raise ValueError("--benchmark brings its own test sets: give --root with it, and no --id, --near or --far")
    tests = {str(path.resolve()) for path in openood.lists_of_tests(name, source.root)}
    for option, place in (("--validation", source.validation), ("--validation-ood", source.validation_ood)):
        if place and real_place(place) in tests:
            raise ValueError(f"{option} {place} {_CHOSEN_BY_TESTS}, or none for those of the benchmark")
    fit, validation, ood = given
    groups = ("near_ood", "far_ood", *(["covariate"] if source.full_spectrum else []))
    known = openood.open_part(name, source.root, "test")
    sets = TestSets(known, *(openood.open_group(name, source.root, group) for group in groups))
    if fit is None and not set(scores) <= set(OWN_SCORES):
        fit = openood.open_part(name, source.root, "train")
        validation = openood.open_part(name, source.root, "validation") if validation is None else validation
    if search:
        validation = openood.open_part(name, source.root, "validation") if validation is None else validation
        ood = openood.open_part(name, source.root, "validation_ood") if ood is None else ood
    return Opened(sets, fit, validation, ood, name if source.leaderboard else None)


def _named(texts: Sequence[str], source: TestImages, labelled: bool) -> dict[str, ImageSet]:
    places = [name_and_place(text) for text in texts]
    if twice := [name for name, count in Counter(name for name, _ in places).items() if count > 1]:
        raise ValueError(f"{twice[0]!r} is the name of several test sets of one kind: give each its own name")
    return {name: _open(source, place, source.split, labelled) for name, place in places}


def methods_of(detectors: Sequence[str]) -> list[tuple[str, str]]:
    """Method and place of each DIR or NAME=DIR; a DIR without a name is a method by itself, named after its folder.

    Raises:
        ValueError: a detector is given twice, or two would have one name by chance.
    """
    is_bare = [Path(text).exists() or "=" not in text for text in detectors]
    found = [
        (Path(text).resolve().name, text) if bare else name_and_place(text) for text, bare in zip(detectors, is_bare)
    ]
    check_once([(f"--detector {text}", place) for text, (_, place) in zip(detectors, found)])
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
