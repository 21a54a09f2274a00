"""What a machine cannot do is refused before a file is written."""

import json
from collections import namedtuple
from dataclasses import replace

import pytest
import torch
from shapes import beside, shapes

from sona_pipeline.data.outlier_set import OutlierPairs
from sona_pipeline.training import devices
from sona_pipeline.training.devices import check_shared_memory
from sona_pipeline.training.settings import RECIPES, Running
from sona_pipeline.training.train import train_detector

SETTINGS = replace(RECIPES["small"], image_size=16, epochs=1, batch_size=16, id_rate=None)
Disk = namedtuple("Disk", "free")


@pytest.fixture(scope="module")
def images():
    return shapes(["horizontal", "vertical"], 32, seed=0)


@pytest.mark.parametrize(
    ("running", "message"),
    [
        (Running(tracker="wandb"), r"`tracker` is 'wandb', which is not installed: pip install wandb, .*: tensorboard"),
        (Running(tracker="comet_ml"), r"pip install comet-ml"),
        (Running(tracker="board"), r"`tracker` is 'board', but has to be one of all, aim, .*tensorboard"),
        (Running(mixed_precision="fp16"), r"`mixed_precision` is 'fp16', which a CPU does not compute in: use 'bf16'"),
    ],
)
def test_what_cannot_be_honoured_is_refused_at_once(images, running, message, tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(ValueError, match=message):
        train_detector(images, SETTINGS, output=tmp_path / "detector", running=replace(running, cpu=True))
    assert not (tmp_path / "detector").exists()


def test_trackers_need_a_folder_and_all_of_none_is_none(images, monkeypatch, tmp_path):
    with pytest.raises(ValueError, match="without an output folder is not tracked: give one"):
        train_detector(images, SETTINGS, running=Running(tracker="tensorboard", cpu=True))
    monkeypatch.setattr(devices, "get_available_trackers", list)
    with pytest.raises(ValueError, match="`tracker` is 'all', which is not installed: pip install tensorboard"):
        train_detector(images, SETTINGS, output=tmp_path / "detector", running=Running(tracker="all", cpu=True))


def test_the_precision_of_a_training_is_not_that_of_the_next(images, tmp_path):
    found = []
    for precision in ("bf16", None, "bf16", "no"):
        running = Running(cpu=True, mixed_precision=precision)
        train_detector(images, SETTINGS, output=tmp_path / f"{len(found)}", running=running)
        found.append(json.loads((tmp_path / f"{len(found)}" / "training.json").read_text())["mixed_precision"])
    assert found == ["bf16", "no", "bf16", "no"]


def test_variables_of_accelerate_change_nothing_that_is_recorded_otherwise(images, monkeypatch):
    plain = train_detector(images, SETTINGS, running=Running(cpu=True)).state_dict()
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "2")
    same = train_detector(images, SETTINGS, running=Running(cpu=True)).state_dict()
    assert all(torch.equal(value, same[name]) for name, value in plain.items())
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(ValueError, match="'fp16', which a CPU does not compute in"):
        train_detector(images, SETTINGS, running=Running(cpu=True))


def test_batches_of_workers_have_to_fit_into_the_shared_memory(images, monkeypatch, tmp_path):
    monkeypatch.setattr(devices.shutil, "disk_usage", lambda path: Disk(3 * 2**20))
    check_shared_memory(3, 2**19)
    check_shared_memory(0, 2**40)
    with pytest.raises(ValueError, match=r"4 workers need 4\.0 MiB of shared memory, but /dev/shm has 3\.0 MiB left"):
        check_shared_memory(4, 2**19)
    monkeypatch.setattr(devices.shutil, "disk_usage", lambda path: Disk(1000))
    with pytest.raises(ValueError, match="2 workers need"):
        train_detector(images, SETTINGS, output=tmp_path / "detector", running=Running(workers=2, cpu=True))
    assert not (tmp_path / "detector").exists()


def test_parts_of_one_image_are_refused_where_they_cannot_be_normalized(images, tmp_path):
    single = replace(SETTINGS, accumulation=16, image_size=8)
    message = "parts of one image cannot be normalized by resnet8 at 8 pixels: raise `batch_size`, or lower"
    with pytest.raises(ValueError, match=message):
        train_detector(images, single, output=tmp_path / "detector", running=Running(cpu=True))
    assert not (tmp_path / "detector").exists()
    train_detector(images, replace(single, image_size=16), running=Running(cpu=True))  # maps of 2 x 2
    train_detector(images, replace(single, accumulation=8), running=Running(cpu=True))
    pairs = beside(images, shapes(["diagonal"], 32, seed=1, labelled=False))
    rounds = OutlierPairs(images, pairs.outliers, images, pairs.strengths)
    train_detector(images, single, outliers=rounds, running=Running(cpu=True))  # an image and its round trip


@pytest.mark.parametrize("count", [17, 33, 3, 2])
def test_a_last_batch_of_one_image_is_left_out(count):
    few = shapes(["horizontal", "vertical"], count, seed=0)
    train_detector(few, replace(SETTINGS, image_size=8), running=Running(cpu=True))
