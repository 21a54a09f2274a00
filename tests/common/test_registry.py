"""Registries know their names before they import what these stand for."""

import json
import subprocess
import sys

import pytest

from sona_pipeline.common.registry import Registry

NAMED = Registry({"dumps": "json:dumps", "gone": "json:no_such_thing"})


def test_a_value_is_what_stands_at_its_place():
    assert NAMED["dumps"] is json.dumps
    assert list(NAMED) == ["dumps", "gone"] and len(NAMED) == 2 and NAMED.place("dumps") == "json:dumps"


def test_what_is_not_there_is_said_when_it_is_asked_for():
    assert "gone" in NAMED and "other" not in NAMED
    with pytest.raises(AttributeError, match="no_such_thing"):
        NAMED["gone"]
    with pytest.raises(KeyError):
        NAMED["other"]


def test_a_name_that_is_added_stands_for_one_place():
    registry = Registry({"dumps": "json:dumps"})
    for _ in range(2):
        registry.add("loads", "json:loads")
    assert registry["loads"] is json.loads and list(registry) == ["dumps", "loads"]
    with pytest.raises(ValueError, match="'dumps' stands for json:dumps already: choose another name"):
        registry.add("dumps", "json:loads")
    assert registry["dumps"] is json.dumps


def test_every_registry_of_the_package_leads_somewhere():
    from sona_pipeline.data.settings import PACKINGS
    from sona_pipeline.detection.scores import SCORES
    from sona_pipeline.generation.label_rules import RULES
    from sona_pipeline.generation.settings import DTYPES, SCHEDULERS
    from sona_pipeline.training.methods import METHODS
    from sona_pipeline.training.settings import AUGMENTATIONS, OPTIMIZERS, SCHEDULES

    for registry in (PACKINGS, SCORES, RULES, DTYPES, SCHEDULERS, METHODS, AUGMENTATIONS, OPTIMIZERS, SCHEDULES):
        assert len([registry[name] for name in registry]) >= 2


def test_settings_and_their_names_are_known_without_torch():
    modules = [
        f"sona_pipeline.{wing}.settings" for wing in ("data", "detection", "generation", "training", "evaluation")
    ]
    code = f"import sys, {', '.join([*modules, 'sona_pipeline.cli.app'])}; print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not [name for name in ("torch", "numpy", "datasets", "PIL", "pandas") if f"'{name}'" in loaded]
