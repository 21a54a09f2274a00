"""Settings from files and from what was given."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
from annotated_types import Ge

from sona_pipeline.common.configuration import Given, read_configuration
from sona_pipeline.common.settings import Called, settings_of


@dataclass(frozen=True)
class Example:
    data: str
    """Images."""
    count: Annotated[int, Ge(1), Called("n")] = 5
    """How many."""
    rate: float | None = 0.1
    """How fast."""
    flag: bool = False
    """Whether."""
    names: tuple[str, ...] = ()
    """Which."""
    words: Mapping[str, str] = field(default_factory=dict)
    """By name."""
    root: Path | None = None
    """Folder."""
    size: Annotated[int, Ge(1)] | Literal["auto"] = 16
    """Of a batch."""


KNOWN = {setting.name: setting for setting in settings_of(Example)}


def read(folder: Path, text: str) -> dict:
    (folder / "it.yaml").write_text(text)
    return read_configuration(folder / "it.yaml", KNOWN)


def test_values_have_the_types_of_their_settings(tmp_path):
    text = "data: 3\nn: 7\nrate: 1e-4\nflag: true\nnames: [a, 1]\nwords: {x: y}\nroot: some/where\nsize: auto\n"
    wanted = {"data": "3", "count": 7, "rate": 1e-4, "flag": True, "names": ("a", "1"), "words": {"x": "y"}}
    assert read(tmp_path, text) == wanted | {"root": Path("some/where"), "size": "auto"}
    assert read(tmp_path, "names: one") == {"names": ("one",)}
    assert read(tmp_path, "root: 7") == {"root": Path("7")}
    assert read(tmp_path, '{"count": 2, "rate": null}') == {"count": 2, "rate": None}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("count: 2\ncuont: 3", "has 'cuont', but there is no such option"),
        ("count: two", "'count' in .* is 'two', which --n cannot be"),
        ("count: 2.5", "is 2.5"),
        ("count: null", "is None"),
        ("flag: 1", "'flag' in .* is 1"),
        ("data: [a]", r"is \['a'\]"),
        ("just words", "has no settings"),
        ("a: [", "is no YAML file"),
    ],
)
def test_other_values_are_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, text)


def test_of_what_an_earlier_run_recorded_the_settings_are_taken(tmp_path):
    (tmp_path / "it.json").write_text('{"count": 2, "model_revision": "x", "how_fast": 0.5, "notes": {}}')
    found = read_configuration(tmp_path / "it.json", KNOWN, lambda record: record | {"rate": record["how_fast"]})
    assert found == {"count": 2, "rate": 0.5}
    with pytest.raises(ValueError, match="recorded by another command or version: it has no 'speed'"):
        read_configuration(tmp_path / "it.json", KNOWN, lambda record: {"rate": record["speed"]})
    with pytest.raises(ValueError, match="has 'model_revision', but there is no such option"):
        read_configuration(tmp_path / "it.json", KNOWN)


def test_settings_are_made_of_what_was_given():
    given = Given(data="x", count=2, other=1)
    assert given.of(Example) == Example("x", 2)
    assert given.of(Example, Example("y", 9, 0.5)) == Example("x", 2, 0.5)
    with pytest.raises(ValueError, match=r"--data is missing\. Images\."):
        Given().of(Example)
    with pytest.raises(ValueError, match="--n is 0, but has to be 1 or more"):
        Given(data="x", count=0).of(Example)
