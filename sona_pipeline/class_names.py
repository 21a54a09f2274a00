"""What classes are called: words for prompts and their synonyms, from names, WordNet ids and class-name files."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

Names = tuple[str, ...]
"""What one class is called; the first name stands in prompts, the others are its synonyms."""

_WNID = re.compile(r"n\d{8}")


def names_of_classes(classes: Sequence[str], file: str | Path | None = None) -> dict[str, Names]:
    """The names of every class.

    Args:
        classes: the classes as the data calls them. ImageNet's WordNet ids ("n01440764") become words ("tench", with
            the synonym "Tinca tinca"); of other names underscores become spaces.
        file: class-name file that says otherwise, with commas between synonyms: lines `class names` or a JSON object
            with the class as key, or lines or a JSON list with the names alone, in the order of `classes`.

    Raises:
        ValueError: the file fits the classes in neither way.
    """
    given = _read_names(Path(file), classes) if file else {}
    return {name: given.get(name) or spoken(name) for name in classes}


def spoken(name: str) -> Names:
    """The names in "word, synonym, ..."; a WordNet id becomes its words, and underscores become spaces."""
    if _WNID.fullmatch(name):
        return _lemmas_by_wnid().get(name, (name,))
    return tuple(part.strip() for part in name.replace("_", " ").split(",") if part.strip()) or (name,)


def imagenet_labels() -> list[Names]:
    """The names of ImageNet-1k's 1,000 classes, in their order."""
    from timm.data import ImageNetInfo

    return [_lemmas_by_wnid()[wnid] for wnid in ImageNetInfo("imagenet1k").label_names()]


def synsets(name: str) -> frozenset[str]:
    """WordNet ids of ImageNet's noun synsets that have `name` as one of their words."""
    return _wnids_by_lemma().get(normal(name), frozenset())


def normal(name: str) -> str:
    """`name` in a form that spelling does not change: lower case, words with one space between them, no plural s."""
    words = re.findall(r"\w+", name.casefold().replace("_", " "))
    return " ".join(word[:-1] if len(word) > 3 and word.endswith("s") and word[-2] != "s" else word for word in words)


@cache
def _lemmas_by_wnid() -> dict[str, Names]:
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet22k")
    return {wnid: tuple(info.label_name_to_description(wnid).split(", ")) for wnid in info.label_names()}


@cache
def _wnids_by_lemma() -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    for wnid, lemmas in _lemmas_by_wnid().items():
        for lemma in lemmas:
            found.setdefault(normal(lemma), set()).add(wnid)
    return {lemma: frozenset(wnids) for lemma, wnids in found.items()}


def _read_names(path: Path, classes: Sequence[str]) -> dict[str, Names]:
    text = path.read_text(encoding="utf-8")
    entries = json.loads(text) if path.suffix == ".json" else [x.strip() for x in text.splitlines() if x.strip()]
    if isinstance(entries, list) and not isinstance(entries[0] if entries else "", str):
        raise ValueError(f"{path} is a list of {type(entries[0]).__name__}: give a list of names, or an object")
    if isinstance(entries, list):
        keyed = {c: line[len(c) :] for line in entries for c in _first_words(line) if c in classes and line[len(c) :]}
        in_order = dict(zip(classes, entries)) if len(entries) == len(classes) else {}
        entries = keyed if set(keyed) >= set(classes) else in_order
    names = {str(key): value if isinstance(value, str) else ", ".join(value) for key, value in entries.items()}
    if missing := [name for name in classes if name not in names]:
        raise ValueError(
            f"{path} has no name for the classes {missing[:5]}: give a line `class names` for each of the"
            f" {len(classes)} classes, or exactly one line a class, in the order of the classes"
        )
    return {name: spoken(names[name].strip(" \t:,")) for name in classes}


def _first_words(line: str) -> list[str]:
    """The beginnings of a line that may be its class: up to the first tab, colon, comma or space."""
    return [line.split(mark, 1)[0] for mark in ("\t", ":", ",", " ")]
