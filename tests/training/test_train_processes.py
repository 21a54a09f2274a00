"""Training as it is run: in processes of its own, which are killed, stopped, run twice, or several at once."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from shapes import shapes
from warm_python import package_python
from warm_runs import Run, succeed

from sona_pipeline.common.files import read_json_lines
from sona_pipeline.detection.detector import load_detector

OPTIONS = ["--recipe", "small", "--image-size", "16", "--epochs", "8", "--batch-size", "16", "--cpu"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """An image folder of two classes, whose names have spaces and letters of many alphabets."""
    root = tmp_path_factory.mktemp("dâta 数据")
    images = shapes(["horizontal", "vertical"], 120, seed=0)
    for i in range(len(images)):
        folder = root / "id" / f"{images.label_name(i)} ñ"
        folder.mkdir(parents=True, exist_ok=True)
        images.image(i).save(folder / f"image {i} ø.png")
    outliers = shapes(["diagonal"], 40, seed=1)
    (root / "real").mkdir()
    for i in range(len(outliers)):
        outliers.image(i).save(root / "real" / f"{i}.png")
    return root


def command(data: Path, output: Path, *options: str) -> list[str]:
    sets = ["--data", str(data / "id"), "--real-outliers", str(data / "real"), "--output", str(output)]
    return ["train", *sets, *OPTIONS, *options]


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("undisturbed") / "detector"
    succeed(command(data, output))
    return output


def wait_for_epoch(run: Run, output: Path, epoch: int) -> None:
    """Wait until the log has the epoch."""
    while len(list(read_json_lines(output / "log.jsonl"))) < epoch:
        assert run.poll() is None, run.errors
        time.sleep(0.005)


def test_killed_training_ends_with_the_weights_of_an_undisturbed_one(data, undisturbed, tmp_path):
    rng = random.Random(0)
    for epoch in (1, 5):
        run = Run(command(data, tmp_path))
        wait_for_epoch(run, tmp_path, epoch)
        time.sleep(rng.uniform(0, 0.1))
        run.kill()
        assert not (tmp_path / "config.json").exists()
    succeed(command(data, tmp_path))
    for name in ("model.safetensors", "config.json", "log.jsonl", "training.json"):
        assert (tmp_path / name).read_bytes() == (undisturbed / name).read_bytes(), name
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in undisturbed.iterdir()}


def test_keyboard_interrupt_says_how_to_go_on(data, tmp_path):
    run = Run(command(data, tmp_path))
    wait_for_epoch(run, tmp_path, 1)
    run.send_signal(signal.SIGINT)
    assert run.wait() == 130, run.errors
    assert "the same command goes on from there" in run.output
    assert "Traceback" not in run.errors


def test_second_run_into_the_same_folder_is_refused(data, tmp_path):
    run = Run(command(data, tmp_path))
    wait_for_epoch(run, tmp_path, 1)
    run.send_signal(signal.SIGSTOP)  # so that it does not come to its end while the second one starts
    second = Run(command(data, tmp_path))
    assert second.wait() == 2
    run.kill()
    assert "another run is writing to" in second.errors.replace("\n", " ")


def test_two_processes_train_one_detector(data, tmp_path):
    launcher = [package_python(), "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    run = [*launcher, "sona_pipeline", *command(data, tmp_path / "two", "--mixed-precision", "no")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHON_EXEC": package_python()}
    done = subprocess.run(run, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    settings = json.loads((tmp_path / "two" / "training.json").read_text())
    assert settings["processes"] == 2
    assert done.stdout.count("Detector of 2 classes") == 1
    assert [row["epoch"] for row in read_json_lines(tmp_path / "two" / "log.jsonl")] == list(range(1, 9))
    assert list(read_json_lines(tmp_path / "two" / "log.jsonl"))[-1]["validation_accuracy"] > 90
    detector = load_detector(tmp_path / "two")
    diagonal, known = shapes(["diagonal"], 40, seed=7), shapes(["horizontal", "vertical"], 40, seed=8)
    flagged = [sum(d.is_ood for d in detector(images.image(i) for i in range(40))) for images in (diagonal, known)]
    assert flagged[0] > 30 and flagged[1] < 10


def test_mixed_precision_trains_float32_weights(data, undisturbed, tmp_path):
    succeed(command(data, tmp_path, "--mixed-precision", "bf16"))
    half, whole = (load_file(folder / "model.safetensors") for folder in (tmp_path, undisturbed))
    assert all(value.dtype == whole[name].dtype for name, value in half.items())
    assert not torch.equal(half["network.head.weight"], whole["network.head.weight"])
    assert list(read_json_lines(tmp_path / "log.jsonl"))[-1]["validation_accuracy"] > 90
