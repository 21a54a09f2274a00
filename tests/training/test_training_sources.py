from dataclasses import replace

import datasets
import pytest
from pictures import fill, picture, shades

from sona_pipeline.common.files import json_lines
from sona_pipeline.training.settings import TrainingImages
from sona_pipeline.training.sources import open_training_sets

NFC, NFD = "Caf\u00e9", "Cafe\u0301"
CLASSES = ["cat", "dog"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def shard(path, count: int, kind=None) -> None:
    features = datasets.Features({"image": datasets.Image(), "label": kind or datasets.ClassLabel(names=CLASSES)})
    rows = {"image": [picture(k) for k in range(count)], "label": [k % 2 for k in range(count)]}
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)


def test_training_and_validation_images_are_splits_of_one_folder(tmp_path):
    for split, count in {"train": 6, "validation": 4, "test": 2}.items():
        shard(tmp_path / "data" / f"{split}-00000-of-00001.parquet", count)
    source = TrainingImages(str(tmp_path), validation=str(tmp_path), validation_split="validation")
    sets, _ = open_training_sets(source, 0)
    assert (len(sets.images), len(sets.validation)) == (6, 4)
    with pytest.raises(ValueError, match=r"no split 'val'; its splits are \['train', 'validation', 'test'\]"):
        open_training_sets(TrainingImages(str(tmp_path), validation=str(tmp_path), validation_split="val"), 0)


def test_splits_of_the_same_names_are_other_images(tmp_path):
    for split, shade in {"train": 10, "validation": 20}.items():
        for name in ("cat/1.png", "dog/1.png"):
            path = tmp_path / split / name
            path.parent.mkdir(parents=True)
            picture(shade).save(path)
    source = TrainingImages(str(tmp_path), validation=str(tmp_path), validation_split="validation")
    sets, _ = open_training_sets(source, 0)
    assert (shades(sets.images), shades(sets.validation)) == ([10, 10], [20, 20])
    with pytest.raises(ValueError, match="are the training images"):
        open_training_sets(replace(source, validation_split="train"), 0)


def test_columns_of_classes_without_names_are_asked_for(tmp_path):
    kinds = {"image": datasets.Image(), "fine": datasets.Value("int64"), "coarse": datasets.Value("int64")}
    rows = {"image": [picture(1)] * 4, "fine": [0, 1, 2, 3], "coarse": [0, 1, 0, 1]}
    datasets.Dataset.from_dict(rows, features=datasets.Features(kinds)).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"--label-column.* of its columns \['image', 'fine', 'coarse'\]"):
        open_training_sets(TrainingImages(str(tmp_path)), 0)
    sets, _ = open_training_sets(TrainingImages(str(tmp_path), label_column="coarse"), 0)
    assert sets.images.classes == ("0", "1")


def test_outliers_need_no_classes(tmp_path):
    shard(tmp_path / "a" / "1.parquet", 4)
    features = datasets.Features({name: datasets.ClassLabel(names=["x"]) for name in ("one", "two")})
    rows = {"picture": [picture(9)], "one": [0], "two": [0]}
    table = datasets.Dataset.from_dict(rows, features=datasets.Features({"picture": datasets.Image(), **features}))
    table.to_parquet(tmp_path / "b.parquet")
    source = TrainingImages(str(tmp_path / "a"), label_column="label", real_outliers=str(tmp_path / "b.parquet"))
    sets, _ = open_training_sets(source, 0)
    assert len(sets.outliers) == 1


@pytest.mark.parametrize("spelling", ["photos", "photos/", "link", "./link/"])
def test_training_images_are_no_outliers(spelling, tmp_path, monkeypatch):
    fill(tmp_path / "photos", ["cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"])
    (tmp_path / "link").symlink_to("photos")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"--real-outliers {spelling} are the training images"):
        open_training_sets(TrainingImages("photos", real_outliers=spelling), 0)


@pytest.mark.parametrize(("there", "here"), [(NFC, NFD), (NFD, NFC)])
def test_an_outlier_set_belongs_to_images_in_another_normal_form(there, here, tmp_path):
    fill(tmp_path / "photos", [f"{here}/1.png", f"{here}/{here}.png", "dog/1.png"])
    keys = [f"{there}/1.png", f"{there}/{there}.png"]
    rows = [{"file_name": f"x/{n:016x}.png", "source_key": key, "stop_step": n + 1} for n, key in enumerate(keys)]
    fill(tmp_path / "set" / "outliers", [row["file_name"] for row in rows])
    (tmp_path / "set" / "outliers" / "metadata.jsonl").write_text(json_lines(rows))
    settings = '{"format": "folder", "reconstructions": false, "num_inference_steps": 2, "ood_labels": ["a"]}'
    (tmp_path / "set" / "settings.json").write_text(settings)
    source = TrainingImages(str(tmp_path / "photos"), outliers=(tmp_path / "set",), validation_share=0)
    sets, left_out = open_training_sets(source, 0)
    assert (sets.images.keys, left_out) == ((f"{here}/1.png", f"{here}/{here}.png"), 1)
    assert sets.outliers.strengths == (0.5, 1.0)


def test_images_of_a_wrong_root_are_refused_before_anything_is_trained(tmp_path):
    (tmp_path / "list.txt").write_text("a/1.png 0\nb/2.png 1\n")
    with pytest.raises(FileNotFoundError, match="none of the 2 images can be had"):
        open_training_sets(TrainingImages(str(tmp_path / "list.txt"), image_root=tmp_path), 0)
