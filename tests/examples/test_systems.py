"""The page of all systems: its settings are those of the code, and every system is there, under one name everywhere."""

import re
from pathlib import Path

import pandas as pd
import pytest
from benchmark_modules import modules_of
from system_tables import BENCHMARKS, CLAIMS, KINDS, PAGE, SYSTEMS, with_tables

from sona_pipeline.training.methods import vos

FIGURES = pd.read_csv(BENCHMARKS / "paper" / "figures.csv", dtype={"table": str})
FULL_SIZE = Path(__file__).parents[2] / "examples" / "full_size" / "systems.txt"
LINES = [line.split() for line in FULL_SIZE.read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
NAMES = {name.casefold() for name in SYSTEMS["system"]}


def test_the_page_has_the_settings_of_the_code(monkeypatch):
    text = PAGE.read_text(encoding="utf-8")
    assert with_tables(text) == text, "systems.md is not up to date: run `python tests/system_tables.py`"
    assert {len(re.split(r"(?<!\\)\|", line)) for line in text.splitlines() if line[:1] == "|"} == {6, 7}
    monkeypatch.setattr(vos, "KEPT", 1234)
    assert "1234 features" in with_tables(text)


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_can_be_asked_for_has_a_row(kind):
    assert sorted(SYSTEMS[SYSTEMS["kind"] == kind]["name"]) == sorted(KINDS[kind][1])


def test_the_systems_of_the_paper_and_of_the_scripts_have_a_row():
    of_paper = set(FIGURES[FIGURES["table"].isin(["1", "5", "6", "7", "8", "9"])]["row"])
    assert len(of_paper) == 33 and {name.casefold() for name in of_paper} <= NAMES
    of_scripts = {name.replace("_", " ") for name, *_ in LINES} - {"cross-entropy"}
    assert {name.casefold() for name in of_scripts} <= NAMES


def test_claims_are_of_systems_and_have_a_source():
    assert not CLAIMS["system"].duplicated().any() and {name.casefold() for name in CLAIMS["system"]} <= NAMES
    assert (CLAIMS["claim"].str.startswith("none") | CLAIMS["source"].str.contains("http")).all()
    assert (CLAIMS["setup"] != "").all()


@pytest.fixture(scope="module")
def bench():
    with modules_of(BENCHMARKS / "cifar10") as modules:
        yield modules


def test_full_size_and_small_runs_agree(bench):
    """Outliers, score and training of each row of the benchmark are those of the line in systems.txt."""
    full = {name.replace("_", " ").casefold(): (kind, score, options) for name, kind, score, *options in LINES}
    rows = bench.rows.TABLES["systems"].rows
    for title, row in rows.items():
        outliers = (row.outliers or "none").removesuffix("-25")
        options = [part for key, value in row.training.items() for part in (f"--{key.replace('_', '-')}", str(value))]
        expected = (outliers, row.score, options)
        assert full[title.removesuffix(", real outliers").casefold()] == expected
    assert len(full) == len(rows) + 1  # LEDITS++, which needs another model


def test_claims_stand_beside_what_was_found(bench):
    rows = [
        (method, "own", group, "mean", "auroc", mean, std)
        for method, mean, std in (
            ("OE, real outliers", 70.0, 1.0),
            ("LEDITS", 60.0, None),
            ("text-to-image", 50.0, 1.0),
        )
        for group in ("near_ood", "far_ood")
    ]
    found = pd.DataFrame(rows, columns=["method", "score", "group", "set", "metric", "mean", "std"])
    part = bench.claims.describe_claims(found)
    table = part.rows.set_index("row")
    assert list(table.index) == ["OE, real outliers", "LEDITS"]  # nobody claims anything for text-to-image
    oe, ledits = table.loc["OE, real outliers"], table.loc["LEDITS"]
    assert "9.50" in oe["its own claim"] and "1812.04606" in oe["source"] and "tiny images" in oe["set-up of the claim"]
    assert (oe["near-OOD, SONA's paper"], oe["near-OOD, ours"]) == ("84.84", "70.00 ± 1.00")
    assert (ledits["far-OOD, SONA's paper"], ledits["far-OOD, ours"]) == ("92.54", "60.00")
