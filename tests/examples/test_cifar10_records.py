"""Scores of detectors that are kept beside a table."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from benchmark_modules import modules_of
from PIL import Image

from sona_pipeline import ImageSet, TestSets, results_of

FOLDER = Path(__file__).parents[2] / "examples" / "benchmarks" / "cifar10"
PICTURE = Image.new("RGB", (8, 8))


@pytest.fixture(scope="module")
def records():
    with modules_of(FOLDER) as modules:
        yield modules.records


def images(name: str, count: int, classes: tuple[str, ...] = ("cat", "dog")) -> ImageSet:
    labels = tuple(k % 2 for k in range(count)) if classes else ()
    return ImageSet(tuple(f"{name}{k}" for k in range(count)), labels, classes, lambda index: PICTURE)


TRAIN, NEAR = images("train", 4), {"wolves": images("wolf", 300, ())}
TESTS = {"test": TestSets(images("id", 300), NEAR)}


def scored() -> dict[str, pd.DataFrame]:
    """As `score_images` would, with scores that a network computed in float32."""
    rng = np.random.default_rng(0)
    rows = [
        {"group": group, "set": name, "key": key, "label": label, "predicted": 1, "confidence": rng.uniform(0.5, 1)}
        for group, name, some in TESTS["test"]
        for key, label in zip(some.keys, some.labels or [-1] * len(some))
    ]
    table = pd.DataFrame(rows)
    table["energy"] = rng.normal(-9, 1, len(table)).astype("float32").astype("float64")
    table.attrs |= {
        "made": "by hand",
        "versions": {"torch": "2.0"},
        "seconds": {"detectors/a-0": 3, "sets/b-0": 5},
        "thresholds": {"energy": -8.5},
    }
    return {"test": table}


def test_a_record_has_what_was_found_and_is_made_once(records, tmp_path):
    wanted = scored()["test"]
    kept = records.Records(tmp_path / "scores", TESTS, TRAIN, tmp_path / "model")
    found = kept.of("SONA-0", "by hand", scored)["test"]
    place = tmp_path / "scores", TESTS, TRAIN, tmp_path / "model"
    again = records.Records(*place).of("SONA-0", "by hand", None)["test"]
    assert results_of(again, "energy", -8.5) == results_of(found, "energy", -8.5) == results_of(wanted, "energy", -8.5)
    assert (again["confidence"] - wanted["confidence"]).abs().max() <= 5.1e-5
    assert records.seconds_of({"test": {"SONA": [found, again]}}) == {"detectors/a-0": 3, "sets/b-0": 5}
    assert records.versions_of({"test": {"SONA": [found, again]}}) == [{"torch": "2.0"}] * 2
    with pytest.raises(ValueError, match=r"SONA-0.parquet is of a detector that was made otherwise \(by hand then, by"):
        kept.of("SONA-0", "by machine", None)
    assert sorted(path.name for path in (tmp_path / "scores" / "test").iterdir()) == ["SONA-0.parquet"]


def test_what_is_said_of_a_set_is_found_once(records, tmp_path):
    kept = records.Records(tmp_path / "scores", TESTS, TRAIN, tmp_path / "model")
    assert kept.set_of("sona", lambda name: {"images": 20}) == kept.set_of("sona", None) == {"images": 20}


def test_records_of_other_images_or_of_another_model_are_refused(records, tmp_path):
    model = tmp_path / "model" / "unet"
    model.mkdir(parents=True)
    (model / "weights.safetensors").write_bytes(b"one")
    place = tmp_path / "scores", TESTS, TRAIN, tmp_path / "model"
    records.Records(*place)
    other = {"test": TestSets(images("id", 300), {"wolves": images("fox", 300, ())})}
    with pytest.raises(ValueError, match="made with other settings: test/wolves"):
        records.Records(place[0], other, *place[2:])
    with pytest.raises(ValueError, match="made with other settings: train"):
        records.Records(*place[:2], images("train", 6), place[3])
    (model / "weights.safetensors").write_bytes(b"two")
    with pytest.raises(ValueError, match=r"made with other settings: model.*choose another folder"):
        records.Records(*place)
