"""Which family of models takes a checkpoint, by what the checkpoint says of itself."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Iterator
from importlib import import_module
from typing import get_args

from sona_pipeline.pipelines import families
from sona_pipeline.pipelines.core import SONAMixin

OTHER_KINDS = {
    "Inpaint|Fill": "fills in masks",
    "Pix2Pix|Edit|Kontext": "edits images as it is told",
    "Control|Adapter|Depth": "takes other images beside the prompt",
    "Upscale|Refine": "works on what other models make",
    "Video|CogVideo|Wan|LTX|Animate|Mochi|SVD": "makes videos",
    "Audio|Music": "makes sounds",
    "Consistency|Turbo|Lightning": "is distilled to few steps",
}
"""What pipelines of diffusers do that no family here does, by parts of their names."""
_DISTILLED = re.compile(r"(?<![a-z])(turbo|lightning|hyper|lcm|schnell|flash)(?![a-z])", re.IGNORECASE)
_OF_OTHERS = re.compile(r"^conditioner\.|^text_encoders\.|(double|single|joint|transformer)_blocks\.\d")


def all_families() -> Iterator[type[SONAMixin]]:
    """The pipelines of all families, each imported when it is asked for."""
    yield from map(family_of_name, families.FAMILIES)


def family_of_name(name: str) -> type[SONAMixin]:
    """The pipeline of the family that has this name in `FAMILIES`."""
    return getattr(import_module(f"{families.__name__}.{name}"), families.FAMILIES[name])


def distilled_by_name(model: str) -> str | None:
    """The word in the last part of a model's name that says it is distilled, where its configuration may not."""
    found = _DISTILLED.search(model.rpartition("/")[2])
    return found[0] if found else None


def titles(some: Collection[type[SONAMixin]] | None = None) -> str:
    """What the models of families are called, in a sentence."""
    *others, last = [family.title for family in some or all_families()]
    return f"{', '.join(others)} or {last}" if others else last


def family_of_index(model: str, index: dict) -> type[SONAMixin]:
    """The family that takes a checkpoint with this `model_index.json`.

    Raises:
        ValueError: it is none's, or lacks a part.
    """
    name = index.get("_class_name")
    name = name[-1] if isinstance(name, list) and name else name
    taken = (family for family in all_families() if name in (family.__name__, *family.checkpoints))
    if (family := next(taken, None)) is None:
        does = next((f", which {does}" for part, does in OTHER_KINDS.items() if re.search(part, str(name))), "")
        raise ValueError(f"{model} is a {name}{does}, and of no family that is known: take {titles()}")
    if index.get("is_distilled"):  # what diffusers' pipelines of FLUX.2 [klein] say of themselves
        raise ValueError(f"{model} is distilled to few steps without guidance: take the base model of {family.title}")
    has = {part for part, value in index.items() if isinstance(value, list) and value and value[0]}
    if missing := sorted(needed_parts(family) - has):
        raise ValueError(f"{model} is a {name} without {', '.join(missing)}: take a whole checkpoint of {family.title}")
    return family


def family_of_keys(path: object, keys: Collection[str]) -> type[SONAMixin]:
    """The family of a file with all weights, by their names.

    Raises:
        ValueError: it is none's, or lacks a part.
    """
    in_files = [family for family in all_families() if family.file_parts]
    missing = {family: _missing(family, keys) for family in in_files}
    if found := [family for family in in_files if not missing[family]]:
        return found[0]
    if any(_OF_OTHERS.search(key) for key in keys):
        raise ValueError(
            f"{path} is of another family than {titles(in_files)}: take its folder in diffusers' form, or name that by"
            " --model-config if it has the very components"
        )
    raise ValueError(
        f"{path} is no whole checkpoint, but has no {', no '.join(missing[in_files[0]])}: name a folder or Hub id of"
        " diffusers' form, or a whole file"
    )


def _missing(family: type[SONAMixin], keys: Collection[str]) -> list[str]:
    starts = family.file_parts.items()
    return [part for part, start in starts if not any(key.startswith(start) for key in keys)]


def needed_parts(family: type[SONAMixin]) -> set[str]:
    """Names of the components that every checkpoint of a family has."""
    parameters = list(inspect.signature(family.__init__).parameters.values())[1:]
    return {one.name for one in parameters if one.default is one.empty} - set(family._optional_components)


def is_flow(family: type[SONAMixin]) -> bool:
    """Whether a family's models predict velocities of a flow, by the scheduler that its pipeline takes."""
    hint = inspect.signature(family.__init__).parameters["scheduler"].annotation
    return any(hasattr(kind, "scale_noise") for kind in (hint, *get_args(hint)))
