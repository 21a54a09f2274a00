"""Values of settings that somebody gave, on a command line or in a file, and settings made of them."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import yaml

from sona_pipeline.common.files import read_text
from sona_pipeline.common.names import at_home, expanded
from sona_pipeline.common.settings import Setting, check_ranges, settings_of

T = TypeVar("T")
UNIONS = (typing.Union, types.UnionType)


class Given(dict[str, Any]):
    """Values that were given, by the names of the settings; what was not given is not in it."""

    def of(self, kind: type[T], base: T | None = None, **more: Any) -> T:
        """Settings with the values given and `more`, and those of `base`, or the defaults, for the others.

        Raises:
            ValueError: a value is missing or out of its range; the message names the command-line option.
        """
        known = settings_of(kind)  # type: ignore[arg-type] # a class is hashable
        values = {setting.name: _at_home(self[setting.name]) for setting in known if setting.name in self} | more
        missing = [setting for setting in known if setting.is_required and setting.name not in values]
        if base is None and missing:
            raise ValueError(f"{missing[0].option} is missing. {missing[0].help}")
        found = kind(**values) if base is None else replace(base, **values)  # type: ignore[type-var] # a dataclass
        check_ranges(found, lambda setting: setting.option)
        return found


def with_preset(given: Mapping[str, Any], known: Mapping[str, Setting]) -> Given:
    """What was given, and beneath it the values of the preset, which is the default one if none was given.

    Args:
        given: values by the names of settings.
        known: the settings by their names; if `preset` is one of them, others have values by its names.
    """
    preset = str(given.get("preset", known["preset"].default)) if "preset" in known else ""
    return Given({name: one.presets[preset] for name, one in known.items() if preset in one.presets} | dict(given))


def _at_home(value: Any) -> Any:
    """The value, with places in it that start at a home folder as they are from the root."""
    if isinstance(value, tuple):
        return tuple(map(_at_home, value))
    return expanded(value) if isinstance(value, Path) else at_home(value) if isinstance(value, str) else value


def read_configuration(
    path: Path, known: Mapping[str, Setting], settings_in: Callable[[dict], dict] | None = None
) -> dict[str, Any]:
    """The values of settings in a YAML file, by the names of the settings.

    Args:
        path: of the file, whose keys are names of settings, in Python or on the command line.
        known: the settings by their names.
        settings_in: finds the settings in the record of an earlier run, which is a file with `notes` in it; None if
            runs leave no record. What it gives beside known settings is passed over.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no YAML file with settings, a name is not known, or a value is of another type.
    """
    values = _read(path)
    if settings_in and "notes" in values:
        try:
            values = {key: value for key, value in settings_in(values).items() if key in known}
        except KeyError as error:
            raise ValueError(f"{path} was recorded by another command or version: it has no {error}") from error
    by_key = {key: setting for setting in known.values() for key in (setting.name, setting.option[2:])}
    if unknown := [key for key in values if key not in by_key]:
        raise ValueError(f"{path} has {unknown[0]!r}, but there is no such option: see `--help`")
    return {by_key[key].name: _converted(by_key[key], value, path) for key, value in values.items()}


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(read_text(expanded(path)))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} has no settings: give lines such as 'steps: 20'")
    return values


def _converted(setting: Setting, value: Any, path: Path) -> Any:
    """A value of a file as the setting has it."""
    if (value is None and setting.is_optional) or (isinstance(value, str) and value in setting.words):
        return value
    parts = typing.get_args(setting.type) if typing.get_origin(setting.type) in UNIONS else (setting.type,)
    kinds = [typing.get_origin(part) or part for part in parts]
    if isinstance(value, dict) and Mapping in kinds:
        return {str(key): str(word) for key, word in value.items()}
    if tuple in kinds and (isinstance(value, list) or kinds == [tuple]):
        return tuple(map(str, value if isinstance(value, list) else [value]))
    if isinstance(value, bool) and bool in kinds:
        return value
    for kind in (int, float, str, Path):
        if kind in kinds and isinstance(value, str | int | float) and not isinstance(value, bool):
            converted = _number(kind, value) if kind in (int, float) else kind(str(value))
            if converted is not None:
                return converted
    raise ValueError(f"{setting.name!r} in {path} is {value!r}, which {setting.option} cannot be")


def _number(kind: type, value: str | float) -> Any:
    """The number in a value, or None; YAML takes '1e-4' for text."""
    try:
        number = kind(value)
    except ValueError:
        return None
    return None if isinstance(value, float) and number != value else number
