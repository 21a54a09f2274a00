"""The benchmarks of speed: what they compare does the same work, and results are counted and kept right."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from benchmark_modules import modules_of
from diffusers import UNet2DConditionModel
from torch.utils._pytree import tree_leaves

from sona_pipeline.cli.app import app

SPEED = Path(__file__).parents[2] / "examples" / "benchmarks" / "speed"
COMMANDS = ("earlier_version", "presets", "kept_form", "object_storage", "two_parts")
"""The parts that run commands of `sona`."""


class Here:
    """Runs commands of `sona` in this process, at once, with few steps."""

    def start(self, words):
        app(words + (["--steps", "2"] if words[0] == "generate" and "--steps" not in words else []))

    def wait(self):
        pass

    __call__ = start


@pytest.fixture(scope="module")
def speed():
    with modules_of(SPEED) as modules:
        yield modules


def test_rounds_start_with_another_thing_each_and_the_first_does_not_count(speed, monkeypatch):
    order = []
    monkeypatch.setattr(speed.timing, "seconds_of", lambda work: work() or len(order))
    things = {name: lambda name=name: order.append(name) for name in "abc"}
    times = speed.timing.rounds_in_turn(things, 2)
    assert "".join(order) == "abc" + "bca" + "cab"
    assert times == {"a": [6, 8], "b": [4, 9], "c": [5, 7]}


def test_ratios_are_of_one_round_each(speed):
    seconds = {"slow": [2.0, 3.0, 8.0], "fast": [1.0, 2.0, 2.0]}
    ratios = (speed.timing.Ratio("slow", "fast", at_least=1.9), speed.timing.Ratio("fast", "slow", at_most=0.4))
    found = speed.timing.Comparison("", {}, 6, "images", seconds, ratios).as_dict()
    slow, fast = found["ratios"]
    assert slow["by_round"] == [2.0, 1.5, 4.0]
    assert (slow["median"], slow["min"], slow["max"], slow["is_met"]) == (2.0, 1.5, 4.0, True)
    assert (fast["median"], fast["is_met"]) == (0.5, False)
    assert found["seconds"]["slow"]["median"] == 3.0
    assert found["seconds"]["slow"]["images a second"] == 2.0


@pytest.mark.parametrize("threshold", [0.01, 0.1, 0.2, 0.25, 0.49])
def test_masks_are_the_same_by_all_routes(speed, threshold):
    psi = speed.mask_routes.without_ties((2, 3, 16, 16))
    assert psi.abs().flatten(2).sort().values.diff().min() > 0
    speed.mask_routes.check_agreement(psi, threshold)
    for route in speed.mask_routes.ROUTES.values():
        assert all((mask.sum(dim=(2, 3)) == round(threshold * 256)).all() for mask in route(psi, threshold))


def test_other_masks_are_noticed(speed, monkeypatch):
    monkeypatch.setitem(speed.mask_routes.ROUTES, "topk", lambda psi, _: speed.mask_routes.by_argsort(psi, 0.3))
    with pytest.raises(ValueError, match="the masks by topk are others"):
        speed.mask_routes.check_agreement(speed.mask_routes.without_ties((1, 1, 8, 8)), 0.2)


def test_loop_of_four_rows_makes_what_the_pipeline_makes(speed, make_pipe):
    pipe, images = make_pipe(), list(torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)))
    arguments = {"image": images, "id_prompt": ["cat", "dog"], "ood_prompt": ["cup", "pen"], "stop_step": 7}

    def generators():
        return [torch.Generator().manual_seed(k) for k in range(2)]

    by_loop = speed.four_rows.four_rows(pipe, **arguments, num_inference_steps=10, generator=generators())
    by_pipeline = pipe(**arguments, num_inference_steps=10, generator=generators(), output_type="latent").images
    torch.testing.assert_close(by_loop, by_pipeline, rtol=1e-5, atol=1e-5)  # the pipeline's guidance is in float32


def test_batches_of_both_have_the_same_sum_of_stop_steps(speed):
    steps = [mean + around for mean in speed.four_rows.MEANS for around in speed.four_rows.AROUND]
    assert sum(speed.four_rows.AROUND) == 0
    assert (min(steps), max(steps)) == (7, 44)


def test_bare_calls_are_those_of_the_pipeline(speed, tiny_pipe):
    arguments = {"id_prompt": "cat", "ood_prompt": "cup", "stop_step": [1, 4, 2], "num_inference_steps": 5}
    bare = speed.bare_denoiser.BareDenoiser(tiny_pipe.unet, lambda: tiny_pipe(torch.rand(3, 3, 32, 32), **arguments))
    assert [len(sample) for (sample, _), _ in bare.calls] == [3, 3, 6, 9]
    assert bare.rows == 3 * (1 + 4 + 2)
    again = speed.bare_denoiser.BareDenoiser(tiny_pipe.unet, bare)
    assert all(one is other for one, other in zip(tree_leaves(bare.calls), tree_leaves(again.calls), strict=True))


def test_calls_alone_are_made_between_steps_and_count_apart(speed, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    class Denoiser(torch.nn.Module):
        def forward(self, seconds: float) -> None:
            clock[0] += seconds

    pipe = SimpleNamespace(denoiser=Denoiser())

    def call(callback_on_step_end=lambda *_: {}) -> None:
        for step in range(3):
            pipe.denoiser(10.0 + step)
            clock[0] += 0.5  # of the rest of a step
            callback_on_step_end(pipe, step, 0, {})

    bare = SimpleNamespace(calls=[((10.0 + step - 1,), {}) for step in range(3)])
    found = speed.family_calls.seconds_by_steps(pipe, call, bare)
    assert found == {"pipeline": 34.5, "bare denoiser": 30.0, "denoiser within the pipeline": 33.0}


def test_sega_computes_five_rows_an_image_and_step(speed, tiny_pipe):
    other = speed.sega.sega_pipeline(tiny_pipe)
    run = {"num_inference_steps": 3, "editing_prompt": ["a", "b", "c"], "output_type": "latent"}
    assert len(speed.sega.CONCEPTS) == len(run["editing_prompt"])
    assert speed.bare_denoiser.BareDenoiser(tiny_pipe.unet, lambda: other(["cat", "dog"], **run)).rows == 5 * 2 * 3


def test_large_unet_has_the_layers_of_stable_diffusion_2(speed):
    with torch.device("meta"):
        unet = UNet2DConditionModel(**speed.family_models.SD2_UNET)
    assert sum(parameter.numel() for parameter in unet.parameters()) == 865_910_724


@pytest.fixture
def tiny_counts(speed, monkeypatch):
    """Every part in less than a second or two; without the compiler, other processes and the earlier version."""
    counts = {
        "bare_unet": {"IMAGES": 2},
        "family_calls": {
            "SIZES": (speed.family_calls.Size("small", False, torch.float32, images=1, side=8, steps=2, goal=9.0),)
        },
        "sega": {"IMAGES": 1},
        "four_rows": {"MEANS": (2,), "AROUND": (-1, 1)},
        "data_set": {"IMAGES": 3, "BATCH_SIZE": 2},
        "mask_routes": {"SHAPE": (1, 2, 8, 8), "CALLS": 1},
        "training_step": {"NETWORK": "resnet8", "IMAGE_SIZE": 32, "BATCH_SIZE": 4, "CLASSES": 3},
        "scoring": {"IMAGES": 3, "BATCH_SIZE": 2},
        "cpu_settings": {"ROWS": 1, "CALLS": 1, "THREADS": 1},
        "earlier_version": {"IMAGES": 2},
        "presets": {"IMAGES": 2},
        "kept_form": {"IMAGES": 2, "SIDE": 32},
        "object_storage": {"IMAGES": 2, "ADDRESS": "memory://speed", "storage": lambda: nullcontext({})},
        "two_parts": {"IMAGES": 2},
    }
    for name, constants in counts.items():
        for constant, value in constants.items():
            monkeypatch.setattr(getattr(speed, name), constant, value)
    settings = replace(speed.planned.SETTINGS, num_inference_steps=4)
    for module in (speed.planned, speed.sega, speed.data_set):
        monkeypatch.setattr(module, "SETTINGS", settings)

    def no_compiler(changes):
        raise RuntimeError("no compiler\nwas found")

    monkeypatch.setattr(speed.cpu_settings, "_compiled", no_compiler)
    monkeypatch.setattr(speed.cpu_settings, "_processes", lambda changes: nullcontext(lambda: None))
    for module in COMMANDS:
        monkeypatch.setattr(getattr(speed, module), "sona_process", lambda *_, **__: nullcontext(Here()))


def test_earlier_version_runs_beside_this_one_and_what_fails_says_why(speed, tmp_path):
    package, images = speed.earlier_version.earlier_package(tmp_path / "package"), speed.planned.plan_of(2).images
    sona_process, generate = speed.commands.sona_process, speed.commands.generate
    with speed.commands.written(images) as (sources, folder), sona_process(package) as then, sona_process() as now:
        records = []
        for sona in (then, now):
            sona(words := generate(sources, folder, "--steps", "2"))
            records.append(json.loads((Path(words[-1]) / "settings.json").read_text()))
        with pytest.raises(RuntimeError, match=r"(?s)a command of sona failed: .*nowhere"):
            now(generate(["--data", "nowhere"], folder))
    assert ["codec" in record for record in records] == [False, True]  # which 0.1.0 does not have


def test_codecs_and_sizes_weigh_what_they_should(speed, tiny_counts):
    (found,) = speed.kept_form.compare(1)
    weights = {name.rpartition(", ")[2]: count for name, count in found.counts.items() if name.startswith("bytes")}
    assert weights["half the size"] < weights["png"] and weights["webp"] != weights["png"]


@pytest.mark.parametrize("missing", ["moto", "s3fs"])
def test_storage_is_not_timed_without_its_libraries(speed, monkeypatch, missing):
    find = speed.object_storage.importlib.util.find_spec
    monkeypatch.setattr(speed.object_storage.importlib.util, "find_spec", lambda n: None if n == missing else find(n))
    (found,) = speed.object_storage.compare(1)
    assert found.notes == (f"not timed without {missing}",) and found.as_dict()["seconds"] == {}


def test_bucket_is_there_for_programs_with_the_environment(speed):
    pytest.importorskip("moto")
    with speed.object_storage.storage() as environment:
        code = "import boto3; print([one['Name'] for one in boto3.client('s3').list_buckets()['Buckets']])"
        found = subprocess.run([sys.executable, "-c", code], env=os.environ | environment, capture_output=True)
    assert found.stdout.decode().strip() == f"['{speed.object_storage.BUCKET}']"


def test_results_are_written_and_earlier_ones_kept(speed, tiny_counts, tmp_path, capsys):
    speed.run.main(only=None, rounds=1, output=tmp_path)
    first = json.loads((tmp_path / "results.json").read_text())
    assert list(first) == list(speed.run.PARTS)
    for letter, part in first.items():
        assert part["seed"] == 0 and part["rounds"] == 1 and part["environment"]["versions"]["torch"]
        assert all(len(row["by_round"]) == 1 for one in part["comparisons"] for row in one["seconds"].values()), letter
    assert first["h"]["comparisons"][0]["notes"] == ["not compiled: no compiler"]

    speed.run.main(only=["g", "e"], rounds=2, output=tmp_path)
    second = json.loads((tmp_path / "results.json").read_text())
    assert {letter for letter in second if second[letter] != first[letter]} == {"e", "g"}
    assert second["e"]["rounds"] == 2
    table = (tmp_path / "results.md").read_text()
    assert [f"## ({letter})" in table for letter in speed.run.PARTS] == [True] * len(speed.run.PARTS)
    assert "| CE + OE + MI / CE + OE |" in capsys.readouterr().out


def test_unknown_part_is_refused_before_any_is_run(speed, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        speed.run.app(["--only", "e", "--only", "z", "--rounds", "1", "--output", str(tmp_path / "out")])
    assert ended.value.code == 2
    assert 'Invalid value "z" for --only. Choose from: "a", "b"' in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
