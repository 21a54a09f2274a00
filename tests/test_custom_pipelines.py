"""The files that diffusers loads: made of the package as it is, each with one pipeline and nothing of the package."""

import ast
import importlib.util
import inspect

import pytest
from custom_pipelines import MADE, family_names, standalone
from diffusers import DiffusionPipeline

from sona_pipeline.pipelines.families import FAMILIES


def test_there_is_a_file_for_each_family():
    made = {path.stem for path in MADE.glob("*.py")} - {"__init__"}
    assert made == set(family_names()) == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_file_is_the_one_that_is_made_now(family):
    written = (MADE / f"{family}.py").read_text(encoding="utf-8")
    assert written == standalone(family), "run `python tests/custom_pipelines.py`"


@pytest.mark.parametrize("family", FAMILIES)
def test_file_imports_nothing_of_the_package(family):
    tree = ast.parse((MADE / f"{family}.py").read_text(encoding="utf-8"))
    plain = [name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names]
    named = [f"{'.' * node.level}{node.module}" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    roots = {name.partition(".")[0] for name in (*plain, *named)}
    assert "sona_pipeline" not in roots and "" not in roots
    assert roots & {"torch", "diffusers"} == {"torch", "diffusers"}


@pytest.mark.parametrize("family", FAMILIES)
def test_file_holds_one_pipeline_as_diffusers_looks_for_it(family):
    """It takes the one subclass in the module that no module of diffusers itself defines."""
    spec = importlib.util.spec_from_file_location(f"made_{family}", MADE / f"{family}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = [
        name
        for name, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, DiffusionPipeline) and not kind.__module__.startswith("diffusers.")
    ]
    assert found == [FAMILIES[family]]
