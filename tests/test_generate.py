import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from sona_pipeline import sample
from sona_pipeline.data import ImageSet, open_images
from sona_pipeline.generate import (
    GenerationSettings,
    generate_outliers,
    load_pipeline,
    plan_outliers,
    reconstruct,
)
from sona_pipeline.outlier_set import open_outlier_set

SETTINGS = GenerationSettings(ood_labels=("bag", "sandal"), num_inference_steps=4)


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline("tiny", "cpu")


@pytest.fixture(scope="module")
def images():
    return sample.id_images("train").take(range(10))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.png"))}


def test_plan_follows_from_seed_and_key_alone(images):
    plan = plan_outliers(images, SETTINGS)
    turned = plan_outliers(images.take(range(9, -1, -1)), SETTINGS)
    assert [replace(item, index=0) for item in turned[::-1]] == [replace(item, index=0) for item in plan]
    assert plan_outliers(images, replace(SETTINGS, seed=1)) != plan


def test_plan_is_uniform_over_stop_steps_and_labels():
    images = sample.id_images("train")
    plan = plan_outliers(images, replace(SETTINGS, num_inference_steps=50))
    steps, labels = Counter(item.stop_step for item in plan), Counter(item.ood_label for item in plan)
    assert set(steps) == set(range(1, 51))
    expected = len(images) / 50
    assert sum((n - expected) ** 2 / expected for n in steps.values()) < 100  # chi-square of 49: P(> 100) < 1e-4
    assert abs(labels["bag"] / len(images) - 0.5) < 0.06
    assert len({item.file_name for item in plan}) == len(images)


def test_outlier_set_opens_in_datasets_and_torchvision(images, pipe, tmp_path):
    generate_outliers(images, pipe, tmp_path, SETTINGS, reconstructions=True)
    table = datasets.load_dataset("imagefolder", data_dir=tmp_path / "outliers", cache_dir=tmp_path / "cache")["train"]
    plan = {item.file_name: item for item in plan_outliers(images, SETTINGS)}
    assert len(table) == 10
    assert {row["source_key"] for row in table} == set(images.keys)
    assert Counter(table["stop_step"]) == Counter(item.stop_step for item in plan.values())
    assert table[0]["image"].size == (32, 32)
    folder = ImageFolder(tmp_path / "outliers")
    assert folder.classes == sorted({images.label_name(i) for i in range(10)})
    assert len(folder) == 10
    assert len(ImageFolder(tmp_path / "reconstructions")) == 10


def test_class_names_of_any_kind_become_folders_that_datasets_takes_for_classes(pipe, tmp_path):
    names = ["train", "test tube", "T-shirt/top", "ünï côde", "..", "val.1"]
    picture = Image.new("L", (32, 32), 90)
    images = ImageSet(tuple(f"test/{n}.png" for n in range(6)), tuple(range(6)), tuple(names), lambda _: picture)
    generate_outliers(images, pipe, tmp_path, SETTINGS)
    table = datasets.load_dataset("imagefolder", data_dir=tmp_path / "outliers", cache_dir=tmp_path / "cache")
    assert list(table) == ["train"]
    assert sorted(table["train"]["source_class"]) == sorted(names)


def test_outliers_do_not_depend_on_batch_size_or_order(images, pipe, tmp_path):
    one = generate_outliers(images, pipe, tmp_path / "one", SETTINGS, batch_size=10)
    other = generate_outliers(images.take(range(9, -1, -1)), pipe, tmp_path / "other", SETTINGS, batch_size=3)
    first, second = ImageFolder(one / "outliers"), ImageFolder(other / "outliers")
    for (path, _), (twin, _) in zip(first.samples, second.samples):
        assert Path(path).name == Path(twin).name
        difference = np.asarray(Image.open(path), dtype=int) - np.asarray(Image.open(twin), dtype=int)
        assert np.abs(difference).max() <= 1


def test_second_run_adds_nothing_and_a_torn_set_is_completed(images, pipe, tmp_path):
    folder = generate_outliers(images, pipe, tmp_path, SETTINGS, reconstructions=True, batch_size=5)
    before = contents(folder)
    table = folder / "outliers" / "metadata.jsonl"
    rows = table.read_text()
    generate_outliers(images, pipe, tmp_path, SETTINGS, reconstructions=True, batch_size=5)
    assert (contents(folder), table.read_text()) == (before, rows)

    table.write_text(rows[:-40])
    next(iter((folder / "reconstructions").rglob("*.png"))).unlink()
    generate_outliers(images, pipe, tmp_path, SETTINGS, reconstructions=True, batch_size=5)
    assert contents(folder).keys() == before.keys()
    assert sorted(json.loads(r)["file_name"] for r in table.read_text().splitlines()) == sorted(
        json.loads(r)["file_name"] for r in rows.splitlines()
    )


def test_killed_run_is_completed_by_the_next(tmp_path):
    data, labels = tmp_path / "data", tmp_path / "labels.txt"
    images = sample.id_images("train").take(range(24))
    for i in range(24):
        (data / images.label_name(i)).mkdir(parents=True, exist_ok=True)
        images.image(i).save(data / images.label_name(i) / f"{i}.png")
    labels.write_text("bag\nsandal\n")
    command = [
        sys.executable,
        "-m",
        "sona_pipeline",
        "generate",
        "--data",
        data,
        "--model",
        "tiny",
        "--ood-labels",
        labels,
    ]
    command += ["--steps", "8", "--batch-size", "2", "--output", tmp_path / "set"]
    run = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL)
    table = tmp_path / "set" / "outliers" / "metadata.jsonl"
    deadline = time.monotonic() + 120
    while not table.exists() and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    run.send_signal(signal.SIGKILL)
    run.wait()
    done = len(table.read_text().splitlines())
    assert 0 < done < 24, "the run was not caught half-way"
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    assert len(open_images(tmp_path / "set" / "outliers")) == 24
    assert len(table.read_text().splitlines()) == 24
    assert not [name for name in os.listdir(tmp_path / "set") if name.endswith(".partial")]


def test_set_made_with_other_settings_is_refused(images, pipe, tmp_path):
    generate_outliers(images.take([0]), pipe, tmp_path, SETTINGS)
    with pytest.raises(ValueError, match=r"guidance_scale \(10.0 then, 5.0 now\)"):
        generate_outliers(images.take([0]), pipe, tmp_path, replace(SETTINGS, guidance_scale=5.0))


def test_unreadable_image_is_recorded_and_passed_over(pipe, tmp_path):
    data = tmp_path / "data" / "shirt"
    data.mkdir(parents=True)
    Image.new("L", (32, 32), 90).save(data / "good.png")
    (data / "bad.png").write_bytes(b"no image")
    images = open_images(tmp_path / "data")
    for _ in range(2):
        generate_outliers(images, pipe, tmp_path / "set", SETTINGS)
    rows = [json.loads(line) for line in (tmp_path / "set" / "rejects.jsonl").read_text().splitlines()]
    assert [row["source_key"] for row in rows] == ["shirt/bad.png"]
    pairs = open_outlier_set(tmp_path / "set", images)
    assert pairs.images.keys == ("shirt/good.png",)
    assert len(pairs.outliers) == 1
    assert pairs.reconstructions is None


def test_pairs_belong_together(images, pipe, tmp_path):
    generate_outliers(images, pipe, tmp_path, SETTINGS, reconstructions=True)
    pairs = open_outlier_set(tmp_path, images.take(range(9, -1, -1)))
    steps = {images.keys[item.index]: item.stop_step for item in plan_outliers(images, SETTINGS)}
    assert pairs.strengths == tuple(steps[key] / 4 for key in pairs.images.keys)
    sources = [np.asarray(pairs.images.image(i), dtype=float) for i in range(10)]
    for i, source in enumerate(sources):
        back = np.asarray(pairs.reconstructions.image(i), dtype=float)
        others = sources[:i] + sources[i + 1 :]
        assert np.abs(source - back).mean() < min(np.abs(other - back).mean() for other in others)


def test_reconstruct_is_the_vae_there_and_back(images, pipe):
    source = images.image(0)
    pixels = torch.tensor(np.asarray(source)).float()[None, None] / 127.5 - 1
    with torch.no_grad():
        expected = pipe.vae.decode(pipe.vae.encode(pixels).latent_dist.mean).sample[0, 0]
    found = np.asarray(reconstruct(pipe, [source])[0], dtype=float)
    assert np.abs(found - ((expected.numpy() + 1) * 127.5).clip(0, 255)).max() <= 0.51


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ood_labels": ()}, "no OOD labels"),
        ({"ood_labels": ("bag", "Shirt")}, r"OOD labels \['Shirt'\] are ID classes"),
        ({"prompt": "a photo"}, "has no {} for the label"),
        ({"mask_threshold": 0.5}, "`mask_threshold` is 0.5"),
        ({"guidance_scale": float("nan")}, "guidance scale is nan"),
        ({"size": 33}, "33 x 33 pixels, but the VAE takes multiples of 4"),
        ({"num_inference_steps": 2000}, "2000"),
    ],
)
def test_bad_settings_are_refused(images, pipe, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        generate_outliers(images, pipe, tmp_path / "set", replace(SETTINGS, **change))
    assert not (tmp_path / "set").exists()


def test_colour_images_are_refused_by_a_grey_model(pipe, tmp_path):
    (tmp_path / "data" / "red").mkdir(parents=True)
    Image.new("RGB", (32, 32), (200, 0, 0)).save(tmp_path / "data" / "red" / "1.png")
    with pytest.raises(ValueError, match="use a model for colour images"):
        generate_outliers(open_images(tmp_path / "data"), pipe, tmp_path / "set", SETTINGS)
