"""The benchmark of memory: both sides have the same rows, and peaks are what the process takes."""

import importlib
import json
import mmap
import sys
from pathlib import Path

import pytest
from benchmark_modules import modules_of

BENCHMARKS = Path(__file__).parents[2] / "examples" / "benchmarks"


@pytest.fixture(scope="module")
def bench():
    with modules_of(BENCHMARKS / "speed"), pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        patch.setattr(sys, "path", list(sys.path))
        yield importlib.import_module("memory")
    del sys.modules["memory"]


def test_memory_is_that_of_the_process(bench):
    before = bench.memory("VmRSS")
    with mmap.mmap(-1, 64 << 20) as block:  # pages of its own, and none that was freed
        block.write(bytes(64 << 20))
        assert 60 <= bench.memory("VmRSS") - before <= 140
        assert bench.memory("VmHWM") >= before + 60


def test_peak_is_not_below_what_was_there_before(bench, monkeypatch):
    monkeypatch.setattr(bench, "SIDE", 16)
    monkeypatch.setattr(bench, "memory", {"VmRSS": 2397, "VmHWM": 2396}.get)
    found = bench.peak(next(iter(bench.LAYOUTS)), 2, is_sona=True, is_full=False)
    assert found["before"] == found["peak"] == 2397


def test_every_family_has_six_rows_a_call_on_both_sides(bench, monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "SIDE", 16)
    for name, layout in bench.LAYOUTS.items():
        sona = bench.peak(name, 2, is_sona=True, is_full=False)
        assert sona["rows"] == 6 and sona["before"] <= sona["peak"] and sona["weights"] > 3
        if layout.img2img:
            rows = [bench.peak(name, images, is_sona=False, is_full=False)["rows"] for images in (3, 6)]
            assert 6 in rows
    bench.write(tmp_path, [{"family": "one", "SONA": 3, "ratio": 1.031}, {"family": "other", "SONA": 4}])
    assert json.loads((tmp_path / "run.json").read_text())["rows"][0]["SONA"] == 3
    assert "| one | 3 | 1.031 |\n| other | 4 |  |" in (tmp_path / "results.md").read_text()
