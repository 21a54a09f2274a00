"""The benchmark of a GPU, at toy size on the CPU: sizes, rows, and parts that fail, hang or die."""

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from benchmark_modules import modules_of
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel
from warm_python import package_python

BENCHMARKS = Path(__file__).parents[2] / "examples" / "benchmarks"


@pytest.fixture(scope="module")
def gpu():
    with modules_of(BENCHMARKS / "speed"), pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        patch.setattr(sys, "path", list(sys.path))
        yield importlib.import_module("gpu")
    del sys.modules["gpu"]


@pytest.fixture(scope="module")
def place(gpu, tmp_path_factory):
    return gpu.Place(tmp_path_factory.mktemp("gpu"), is_toy=True)


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_models_have_the_sizes_of_the_published_ones(gpu):
    sd2, sdxl = (gpu.SIZES[name] for name in ("Stable Diffusion 2", "Stable Diffusion XL"))
    embedding = (2816 * 1280 + 1280) + (1280 * 1280 + 1280)  # of sizes and pooled prompts, two linear layers
    with torch.device("meta"):
        assert parameters(UNet2DConditionModel(**sd2.unet)) == 865_910_724
        assert parameters(UNet2DConditionModel(**sdxl.unet)) == 2_567_463_684 - embedding
        assert parameters(AutoencoderKL(**sd2.vae)) == 83_653_863
        assert parameters(CLIPTextModel(CLIPTextConfig(vocab_size=49_408, **sd2.text_encoder))) == 340_387_840


def test_rows_of_the_pipeline_are_counted_and_timed(gpu, place):
    rows = list(gpu.of_stable_diffusion_2(place))
    assert [(row["dtype"], row["images"]) for row in rows] == list(gpu.TOY.batches[gpu.SD2])
    for row in rows:
        steps = max(2, gpu.TOY.rows[gpu.SD2] // (3 * row["images"]))
        assert row["rows"] == 3 * row["images"] * steps
        assert row["rows a second"] > 0 and row["bare UNet, rows a second"] > 0
    assert [row["rows"] for row in gpu.of_stable_diffusion_xl(place)] == [6]


def test_batches_that_do_not_fit_are_recorded_and_the_next_go_on(gpu, place, monkeypatch):
    def full(pipe, images, rows, rounds):
        if images == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        return {"rows": 1}

    monkeypatch.setattr(gpu, "speeds_of", full)
    monkeypatch.setattr(torch.accelerator, "empty_cache", lambda: None)
    first, second = gpu.of_stable_diffusion_2(place)
    assert first["note"] == "CUDA out of memory"
    assert second["rows"] == 1


def test_sega_with_one_concept_has_the_rows_of_sona(gpu, place):
    sona, one, three = gpu.of_sega(place)
    assert sona["rows"] == one["rows"] == 3 * sona["images"] * sona["steps"]
    assert three["rows"] == 5 * sona["images"] * sona["steps"]
    assert sona["times as long as SONA"].startswith("1.000")


def test_generation_makes_whole_sets(gpu, place):
    (row,) = gpu.of_generation(place)
    assert (row["images"], row["side"]) == (gpu.TOY.images, 128)
    sets = sorted(place.folder.glob("set-0-*"), key=lambda path: path.stat().st_mtime)
    assert [len(list((one / "outliers").rglob("*.png"))) for one in sets] == [1, 2, 2]


def test_outliers_of_one_device_are_its_own(gpu, place):
    exact, tf32, half, brief, unet = gpu.of_agreement(place)
    assert exact["mean difference of 255"] == tf32["mean difference of 255"] == 0
    assert 0 < half["mean difference of 255"] < brief["mean difference of 255"] < 10
    assert half["that of the median image"] <= half["of the worst"]
    assert unet["relative error of a UNet call"] == 0


def test_processes_share_the_images(gpu, place):
    assert len(gpu.Generation(place, 1, 2).images) == gpu.TOY.images // 2
    shares = [set(gpu.Generation(place, part, 2).images.keys) for part in (0, 1)]
    assert not shares[0] & shares[1] and len(shares[0] | shares[1]) == gpu.TOY.images


def test_compiled_unet_is_timed_beside_the_same_one(gpu, place, monkeypatch):
    from sona_pipeline.generation import checkpoint

    compiled = []  # for real, it is in tests/pipelines/test_loading.py
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: compiled.append(type(self).__name__))
    monkeypatch.setattr(checkpoint, "check_compiler", lambda device: None)
    (row,) = gpu.of_compiler(place)
    assert compiled == ["UNet2DConditionModel"]
    assert row["images"] == 1 and row["rows a second"] > 0 and row["not compiled, rows a second"] > 0
    assert row["seconds of the first call"] > 0


# Guarded parts

PARTS = """\
import os, subprocess, sys, time


def good(place):
    "Gives two rows."
    yield {"place": place}
    yield {"place": 2}


def failing(place):
    "Fails after a row."
    yield {"place": place}
    raise MemoryError("no room\\nfor more")


def hanging(place):
    "Hangs with a process of its own."
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield {"child": child.pid, "own": os.getpid()}
    time.sleep(600)


def dying(place):
    "Dies."
    yield {"place": place}
    os._exit(9)
"""


@pytest.fixture
def parts(tmp_path, monkeypatch):
    (tmp_path / "some_parts.py").write_text(PARTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("some_parts")
    del sys.modules["some_parts"]


def is_there(process: int) -> bool:
    """Whether a process is neither gone nor dead."""
    state = Path(f"/proc/{process}/stat")
    return state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_parts_that_fail_hang_or_die_are_recorded_and_the_next_goes_on(gpu, parts):
    guarded = sys.modules["guarded"]
    works = {"failing": 20, "hanging": 5, "dying": 20, "good": 20}
    chosen = {name: guarded.Part(getattr(parts, name), seconds) for name, seconds in works.items()}
    records = dict(guarded.run_parts(chosen, (1,), 65))
    ended = {name: record["ended"] for name, record in records.items()}
    assert ended["failing"] == "MemoryError: no room"
    assert ended["hanging"].startswith("stopped after ")
    assert ended["dying"] == "its process died with exit code 9"
    assert ended["good"] == "done"
    assert records["failing"]["title"] == "Fails after a row."
    assert [len(record["rows"]) for record in records.values()] == [1, 1, 1, 2]
    assert not any(map(is_there, records["hanging"]["rows"][0].values()))


def test_what_a_part_leaves_of_its_time_is_for_the_next(gpu, monkeypatch):
    guarded, given, clock = sys.modules["guarded"], [], iter([0, 0, 10, 10, 70, 70, 70])

    def at_once(work, arguments, seconds):
        given.append(seconds)
        yield "done"

    def work():
        """None."""

    monkeypatch.setattr(guarded, "guarded", at_once)
    monkeypatch.setattr(guarded.time, "monotonic", lambda: next(clock))
    parts = {name: guarded.Part(work, seconds) for name, seconds in {"a": 60, "b": 30, "c": 10}.items()}
    found = dict(guarded.run_parts(parts, (), 200))
    assert given == [200 * 60 / 100, (200 - 10) * 30 / 40, 200 - 70]
    assert [record["seconds"] for record in found.values()] == [10, 60, 0]


# The script


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [package_python(), str(BENCHMARKS / "gpu.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def test_script_writes_what_it_measured(tmp_path):
    begun = time.monotonic()
    done = run("--toy", "--only", "sega", "--results", str(tmp_path / "gpu"))
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "gpu" / "run.json").read_text())
    assert list(record["parts"]) == ["sega"] and record["parts"]["sega"]["ended"] == "done"
    assert record["toy"] and record["environment"]["threads"] == 1
    assert 0 < record["seconds"] < time.monotonic() - begun
    table = (tmp_path / "gpu" / "results.md").read_text()
    assert table.startswith("# On the CPU, at toy size\n\n`")
    assert "| SEGA, one concept | 1 | 1 | 3 |" in table and "| SEGA, one concept | 1 | 1 | 3 |" in done.stdout


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU")
def test_without_a_gpu_there_is_nothing_but_the_toy(gpu, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        gpu.main(results=tmp_path / "gpu")
    assert ended.value.code == 2
    assert "--toy" in capsys.readouterr().err
    assert not (tmp_path / "gpu").exists()
