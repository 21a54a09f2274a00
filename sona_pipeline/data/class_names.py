"""What classes are called: words for prompts and their synonyms, from names, WordNet ids and class-name files."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from sona_pipeline.common.files import read_text

T = TypeVar("T")
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


def composed(name: str) -> str:
    """The one form of a class name that names are compared in, however Unicode writes its letters.

    Macs write an accent as a letter of its own, others do not; names are kept as they are, and compared in this form.
    """
    return unicodedata.normalize("NFC", name)


def same_names(some: Iterable[str], others: Iterable[str]) -> bool:
    """Whether two lists of class names are the same, in the same order."""
    return list(map(composed, some)) == list(map(composed, others))


def matched(names: Sequence[str], known: Sequence[str]) -> list[str] | None:
    """Those of `names` that stand for the classes `known`, in their order; None unless each stands for just one.

    Names are the same as they are written, or else in lower case, without plurals, underscores and hyphens, by one of
    their synonyms ("tench, Tinca tinca") or as the words of a WordNet id.
    """
    exact = finder({name: name for name in names})
    if len(names) == len(known) and None not in (found := [exact(name) for name in known]):
        return [name for name in found if name is not None]
    forms: dict[str, set[str]] = {}
    for name in names:
        for form in _forms(name):
            forms.setdefault(form, set()).add(name)
    fitting = [set().union(*(forms.get(form, ()) for form in _forms(name))) for name in known]
    chosen = [name for some in fitting if len(some) == 1 for name in some]
    return chosen if len(chosen) == len(known) == len(names) == len(set(chosen)) else None


def named_alike(names: Iterable[str], known: Iterable[str]) -> list[str]:
    """Those of `names` that are called as one of `known`, or share a synonym with it; compared as in `matched`."""
    forms = set().union(*map(_forms, known))
    return [name for name in names if forms & _forms(name)]


def _forms(name: str) -> set[str]:
    """A name and its synonyms, in forms that spelling does not change."""
    return {normal(word) for word in (name, *spoken(name))}


def finder(entries: Mapping[str, T]) -> Callable[[str], T | None]:
    """What finds the entry of a name: as it is written, else however Unicode writes its letters; None without one."""
    forms = {composed(name): entry for name, entry in entries.items()}
    return lambda name: entries[name] if name in entries else forms.get(composed(name))


def check_spellings(names: Iterable[str], place: str) -> None:
    """Raise ValueError if two classes of `place` have names that look the same."""
    spellings: dict[str, str] = {}
    for name in names:
        other = spellings.setdefault(composed(name).strip(), name)
        if other != name:
            raise ValueError(
                f"{place} has two spellings of the class {name.strip()!r}, {other!a} and {name!a}, which differ in"
                " spaces or in how Unicode writes a letter: make them one"
            )


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
    """`name` in a form that spelling does not change: lower case, words with one space between them, no plurals."""
    text = unicodedata.normalize("NFKC", name).casefold()
    return " ".join(map(_stem, re.findall(r"[^\W_]+", text))) or text


def _stem(word: str) -> str:
    """A word of three letters or more without a plural's s, es or ies.

    Axe and axes, cherry and cherries, movie and movies fall together.
    """
    if len(word) > 3 and word.endswith("s") and not word.endswith("ss"):
        word = word[:-1]
    if len(word) > 2:
        word = word[:-1] if word.endswith(("sse", "xe", "che", "she")) else word
        word = re.sub("(ie|y)$", "i", word) if word.endswith(("ie", "y")) else word
    return word


@cache
def _lemmas_by_wnid() -> dict[str, Names]:
    from timm.data import ImageNetInfo

    parts = ImageNetInfo("imagenet22k"), ImageNetInfo("imagenet1k")  # the second has ids that the first does not
    return {w: tuple(part.label_name_to_description(w).split(", ")) for part in parts for w in part.label_names()}


@cache
def _wnids_by_lemma() -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = {}
    for wnid, lemmas in _lemmas_by_wnid().items():
        for lemma in lemmas:
            found.setdefault(normal(lemma), set()).add(wnid)
    return {lemma: frozenset(wnids) for lemma, wnids in found.items()}


def _read_names(path: Path, classes: Sequence[str]) -> dict[str, Names]:
    text = composed(read_text(path))
    known = list(map(composed, classes))
    if path.suffix.lower() == ".json":
        entries = _json(path, text)
        found = dict(zip(known, entries)) if isinstance(entries, list) and len(entries) == len(known) else entries
        found = {composed(key): _joined(path, value) for key, value in found.items()} if isinstance(found, dict) else {}
    else:
        found = _names_in_lines([line.strip() for line in text.splitlines() if line.strip()], known)
    if missing := [name for name in known if not found.get(name, "").strip()]:
        raise ValueError(
            f"{path} has no name for the classes {missing[:5]}: give a line `class names` for each of the"
            f" {len(classes)} classes, or exactly one line a class, in the order of the classes"
        )
    return {name: spoken(found[composed(name)].strip()) for name in classes}


def _json(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON ({error}): give an object or a list of names") from None


def _joined(path: Path, value: object) -> str:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path} has {value!r} for a class: give a name, or a list of names")
    return ", ".join(names)


def _names_in_lines(lines: list[str], classes: Sequence[str]) -> dict[str, str]:
    """The names of each class, if the lines begin with the classes; else the lines, if there are as many of them."""
    known, keyed = set(classes), {}
    for line in lines:
        beginnings = [line[: mark.start()] for mark in re.finditer(r"[\t: ]|,(?=\S)", line)]
        if found := [text for text in beginnings if text in known]:
            keyed[found[-1]] = line[len(found[-1]) :].lstrip("\t:, ")
    if keyed.keys() >= known:
        return keyed
    return dict(zip(classes, lines)) if len(lines) == len(classes) else keyed
