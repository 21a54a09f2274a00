"""A detector in use: `sona score --summary` and `sona calibrate` as they are called."""

import json
import shutil
from pathlib import Path

import pytest

from sona_pipeline.cli import app as command_line
from sona_pipeline.common.assets import SAMPLE, TINY_DETECTOR
from sona_pipeline.data import sample
from sona_pipeline.detection.detector import load_detector


@pytest.fixture
def sona(capsys):
    def run(*words, code: int = 0) -> str:
        try:
            command_line.main(list(map(str, words)))
        except SystemExit as ended:
            assert ended.code == code
        out, error = capsys.readouterr()
        return out if code == 0 else error.replace("\n", " ")

    return run


@pytest.fixture(scope="module")
def inbox(tmp_path_factory) -> Path:
    """40 images that a detector knows, and one that is none."""
    folder = tmp_path_factory.mktemp("inbox")
    images = sample.id_images("validation")
    for i in range(40):
        images.image(i).save(folder / f"{i:02}.png")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


@pytest.fixture
def detector(tmp_path) -> Path:
    return Path(shutil.copytree(TINY_DETECTOR, tmp_path / "detector"))


def test_calibrated_by_an_inbox_a_detector_flags_of_it_what_was_promised(sona, inbox, detector):
    said = sona("calibrate", detector, "--data", inbox, "--false-alarms", 0.1, "--device", "cpu")
    assert "which accepts 90 % of 40 images" in said and "cannot be read, and do not count: 1" in said
    assert load_detector(detector).id_rate == 0.9
    *rows, last = sona("score", "--detector", detector, inbox, "--json", "--summary").splitlines()
    summary = json.loads(last)["summary"]
    assert len(rows) == 41 and sum(json.loads(row).get("is_ood", False) for row in rows) == summary["flagged"] == 4
    assert (summary["promised"], summary["images"], summary["unreadable"]) == (0.1, 40, 1)
    assert summary["as_promised"] is True and sum(one["images"] for one in summary["by_class"].values()) == 40
    said = sona("score", "--detector", detector, inbox, "--summary")
    assert "It flags 10 % (2.79 to 23.7) of 40 images, 10 % were promised: no change is seen." in said
    assert "95 % interval" in said and ".png" not in said


def test_a_copy_with_thresholds_of_classes(sona, inbox, detector, tmp_path):
    options = ("--data", inbox, "--id-rate", 0.5, "--per-class", "--output", tmp_path / "copy")
    said = sona("calibrate", detector, *options, code=2)
    assert "a class needs 20 images for a threshold of its own at an ID rate of 0.5, but the largest" in said
    assert not (tmp_path / "copy").exists()
    options = ("--data", SAMPLE / "validation.parquet", *options[2:])
    said = sona("calibrate", detector, *options)
    copy = load_detector(tmp_path / "copy")
    assert "classes have a threshold of their own" in said and len(copy.class_thresholds) == 6
    assert load_detector(detector).class_thresholds is None


BAD = {
    "calibrate {detector} --data {inbox} --id-rate 0.9 --false-alarms 0.1": "exclude each other: give one of them",
    "calibrate {detector} --data {inbox} --id-rate 1": "--id-rate is 1.0, but has to be above 0 and below 1",
    "calibrate {detector} --data {inbox}/none": "none does not exist",
    "calibrate {inbox} --data {inbox}": "holds no detector",
    "calibrate {detector} --data {inbox} --output {inbox}/copy": "would count as images of it the next time",
    "calibrate {detector}": "--data",
    "score --detector {plain} {inbox} --summary": "no threshold, and so flags nothing",
}


@pytest.mark.parametrize("words", BAD)
def test_bad_input_is_one_sentence(sona, inbox, detector, tmp_path, words):
    plain = shutil.copytree(detector, tmp_path / "plain")
    config = json.loads((plain / "config.json").read_text())
    (plain / "config.json").write_text(json.dumps(config | {"threshold": None}))
    places = {"detector": detector, "inbox": inbox, "plain": plain}
    assert BAD[words] in sona(*(word.format(**places) for word in words.split()), code=2)
