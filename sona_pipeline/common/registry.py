"""Names and what they stand for, where the names have to be known before anything heavy is imported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TypeVar

T = TypeVar("T")


class Registry(Mapping[str, T]):
    """A mapping whose values are imported when they are asked for.

    Args:
        places: for each name the place of its value, as "package.module:attribute".
    """

    def __init__(self, places: Mapping[str, str]):
        self._places = dict(places)

    def place(self, name: str) -> str:
        """Where the value of a name comes from."""
        return self._places[name]

    def add(self, name: str, place: str) -> None:
        """Have another name stand for what is at a place, which may be outside of this package.

        Raises:
            ValueError: the name stands for something else already.
        """
        if self._places.setdefault(name, place) != place:
            raise ValueError(f"{name!r} stands for {self.place(name)} already: choose another name")

    def __getitem__(self, name: str) -> T:
        module, _, attribute = self.place(name).partition(":")
        return getattr(import_module(module), attribute)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    __hash__ = object.__hash__
