"""Settings of jobs: each is declared once, as the field of a dataclass, and checked and explained from there.

A field has its name, its type and its default; its range or its choices in an annotation; and its help in the string
under it:

    @dataclass(frozen=True)
    class Settings:
        steps: Annotated[int, Ge(1)] = 50
        \"\"\"Steps of the full schedule.\"\"\"

The command line and the tables of the guides are derived from that. Nothing here or in a module of settings imports
torch, so that `--help` answers at once.
"""

from __future__ import annotations

import functools
import math
import operator
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Annotated, Any, Literal

from annotated_types import Ge, GroupedMetadata, Gt, Le, Lt
from docstring_parser import parse_from_object


@dataclass(frozen=True)
class OneOf:
    """Annotation: the value is one of these names."""

    names: Collection[str]


@dataclass(frozen=True)
class Called:
    """Annotation: what the option is called on the command line, if it is not called like the field."""

    option: str


@dataclass(frozen=True)
class Argument:
    """Annotation: on the command line the value stands by itself, without the name of an option."""


@dataclass(frozen=True)
class ByPreset:
    """Annotation: a preset has a value for it, which counts on the command line where nothing else is given.

    Attributes:
        presets: the values of settings, by the names of presets.
    """

    presets: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Setting:
    """A field of a settings dataclass, as a reader needs to know it.

    Attributes:
        name: of the field.
        type: without annotations and None.
        is_optional: whether the value may be None.
        default: `dataclasses.MISSING` if there is none.
        help: what it means.
        rules: the annotations that its value has to obey: `Ge`, `Gt`, `Le`, `Lt`, `OneOf`.
        option: name of the command-line option.
        is_argument: whether it stands on the command line without that name.
        presets: its values by the names of presets, if they have one for it.
    """

    name: str
    type: Any
    is_optional: bool
    default: Any
    help: str
    rules: tuple[Any, ...]
    option: str
    is_argument: bool
    presets: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_required(self) -> bool:
        """Whether a value has to be given."""
        return self.default is MISSING

    @property
    def says_default(self) -> bool:
        """Whether there is a default that tells a reader something."""
        return not any(self.default is unsaid for unsaid in (MISSING, None, False, ()))

    @property
    def default_in_words(self) -> str:
        """The default, or what it is by each preset, such as "50 (paper), 10 (fast)"."""
        if len(set(self.presets.values())) < 2:
            return str(self.default)
        return ", ".join(f"{value} ({name})" for name, value in self.presets.items())

    @property
    def choices(self) -> tuple[str, ...]:
        """The names that the value may have, or none if it may be anything."""
        return tuple(name for rule in self.rules if isinstance(rule, OneOf) for name in rule.names)

    @property
    def bounds(self) -> str:
        """The range of the value in words, such as "1 or more"; empty if it has none."""
        finite = [rule for rule in self.rules if type(rule) in _WORDS and rule != Lt(math.inf)]
        return " and ".join(_WORDS[type(rule)](rule) for rule in finite)

    @property
    def words(self) -> tuple[str, ...]:
        """Words that the value may be instead of what its type says, such as "auto"."""
        parts = (self.type, *typing.get_args(self.type))
        return tuple(word for part in parts if typing.get_origin(part) is Literal for word in typing.get_args(part))

    def obeys(self, value: Any) -> bool:
        """Whether a value keeps to the rules; None does if the value may be None."""
        if value in self.words or (value is None and self.is_optional):
            return True
        if self.bounds and not isinstance(value, int | float):
            return False
        return all(_TESTS[type(rule)](rule, value) for rule in self.rules)


_WORDS: dict[type, Callable[[Any], str]] = {
    Ge: lambda rule: f"{rule.ge} or more",
    Gt: lambda rule: f"above {rule.gt}",
    Le: lambda rule: f"at most {rule.le}",
    Lt: lambda rule: f"below {rule.lt}",
}
_TESTS: dict[type, Callable[[Any, Any], bool]] = {
    Ge: lambda rule, value: value >= rule.ge,
    Gt: lambda rule, value: value > rule.gt,
    Le: lambda rule, value: value <= rule.le,
    Lt: lambda rule, value: value < rule.lt,
    OneOf: lambda rule, value: value in rule.names,
}


@functools.cache
def settings_of(kind: Any) -> tuple[Setting, ...]:
    """The settings that a dataclass declares, in their order; those of a base class first."""
    hints, texts = typing.get_type_hints(kind, include_extras=True), _helps(kind)
    found = []
    for one in fields(kind):
        hint, rules, is_optional = _unwrapped(hints[one.name])
        default = one.default if one.default_factory is MISSING else one.default_factory()
        option = next((rule.option for rule in rules if isinstance(rule, Called)), one.name)
        is_argument = Argument() in rules
        presets = next((rule.presets for rule in rules if isinstance(rule, ByPreset)), {})
        values = {name: preset[one.name] for name, preset in presets.items()}
        rules = tuple(rule for rule in rules if type(rule) in _TESTS)
        option = "--" + option.replace("_", "-")
        found.append(Setting(one.name, hint, is_optional, default, texts[one.name], rules, option, is_argument, values))
    return tuple(found)


def check_ranges(settings: Any, called: Callable[[Setting], str] = lambda setting: f"`{setting.name}`") -> None:
    """Raise ValueError for the first setting that is out of its range or names what is not there.

    Args:
        settings: an instance of a settings dataclass.
        called: what the message calls a setting.
    """
    for setting in settings_of(type(settings)):  # type: ignore[arg-type] # a class is hashable
        value = getattr(settings, setting.name)
        if not setting.obeys(value):
            rules = f"one of {', '.join(setting.choices)}" if setting.choices else setting.bounds
            raise ValueError(f"{called(setting)} is {value!r}, but has to be {' or '.join([rules, *setting.words])}")


def _helps(kind: type) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in reversed(kind.__mro__[:-1]):
        described = parse_from_object(part).params
        found |= {one.arg_name: " ".join((one.description or "").split()) for one in described}
    return found


def _unwrapped(hint: Any) -> tuple[Any, tuple[Any, ...], bool]:
    """The type in a hint, without None; all annotations in it; and whether None is in it."""
    if typing.get_origin(hint) is Annotated:
        inner, rules, is_optional = _unwrapped(hint.__origin__)
        return inner, (*rules, *_flat(hint.__metadata__)), is_optional
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        parts = [_unwrapped(part) for part in typing.get_args(hint) if part is not type(None)]
        return (
            functools.reduce(operator.or_, (part for part, _, _ in parts)),
            tuple(rule for _, rules, _ in parts for rule in rules),
            type(None) in typing.get_args(hint),
        )
    return hint, (), False


def _flat(metadata: Iterable[Any]) -> list[Any]:
    """Annotations with those in groups, such as `Interval`, one by one."""
    return [one for rule in metadata for one in (rule if isinstance(rule, GroupedMetadata) else [rule])]
