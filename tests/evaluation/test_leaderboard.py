"""Rows for OpenOOD's leaderboard, re-read as its page reads them."""

import json
from dataclasses import replace

import pandas as pd
import pytest
from shapes import shapes

from sona_pipeline.detection.detector import Detector, save_detector
from sona_pipeline.evaluation.evaluate import evaluate_detectors
from sona_pipeline.evaluation.leaderboard import described
from sona_pipeline.evaluation.score_table import TestSets
from sona_pipeline.evaluation.settings import TestImages
from sona_pipeline.evaluation.sources import open_test_images

HEAD = "Training,Postprocessor,Near-OOD_AUROC,Far-OOD_AUROC,ID_Accuracy,Outlier_Data,Arch,Additional_Description"
NAMES = ["horizontal", "vertical"]
PLAIN = {"method": "oe", "outliers": None, "epochs": 100}


def detector(folder, record, network="resnet18"):
    save_detector(Detector(NAMES, network, 16), folder)
    if record is not None:
        (folder / "training.json").write_text(json.dumps(record))
    return str(folder)


@pytest.fixture
def sets():
    known, shifted = shapes(NAMES, 20, seed=1), shapes(NAMES, 20, seed=2)
    near, far = ({name: shapes(["diagonal"], 20, seed=seed)} for name, seed in (("a", 3), ("b", 4)))
    return TestSets(known, near, far, {"shifted": shifted})


def near_auroc(found, method, score, spectrum):
    rows = found.set_index(["method", "score", "spectrum", "group", "set", "metric"])
    return rows.loc[(method, score, spectrum, "near_ood", "mean", "auroc")]


def test_rows_are_those_of_the_leaderboard(sets, tmp_path):
    made = PLAIN | {"outliers": "x", "outlier_form": {}}
    detectors = [("sona", detector(tmp_path / f"sona-{seed}", made)) for seed in (0, 1)]
    detectors += [
        ("ce", detector(tmp_path / "ce", PLAIN)),
        ("OE", detector(tmp_path / "oe", PLAIN | {"outliers": "y"})),
    ]
    output, scores = tmp_path / "results", ["energy", "msp", "fdbd"]
    found = evaluate_detectors(detectors, sets, output, scores, leaderboard="imagenet200", fit_images=sets.id)
    for file, spectrum in (("imagenet200_ood.csv", "standard"), ("imagenet200_fsood.csv", "full")):
        assert (output / "leaderboard" / file).read_text().splitlines()[0] == HEAD
        rows = pd.read_csv(output / "leaderboard" / file, dtype=str)
        assert rows["Training"].tolist() == 3 * ["sona"] + 3 * ["CrossEntropy"] + 3 * ["OE"]
        assert rows["Postprocessor"].tolist() == 3 * ["EBO", "MSP", "fDBD"]
        assert rows["Outlier_Data"].tolist() == 6 * ["No"] + 3 * ["Yes"]
        assert set(rows["Arch"]) == {"ResNet18"} and set(rows["Additional_Description"]) == {"100 epochs"}
        two, one = (near_auroc(found, *row, spectrum) for row in (("sona", "energy"), ("ce", "msp")))
        assert rows["Near-OOD_AUROC"][0] == f"{two['mean']:.2f} ± {two['std']:.2f}"
        assert rows["Near-OOD_AUROC"][4] == f"{one['mean']:.2f}"


def test_a_benchmark_without_full_spectrum_has_one_file(sets, tmp_path):
    place = detector(tmp_path / "ce", None, network="timm:resnet10t")
    evaluate_detectors([("mine", place)], replace(sets, covariate={}), tmp_path / "results", leaderboard="cifar10")
    assert [path.name for path in (tmp_path / "results" / "leaderboard").iterdir()] == ["cifar10.csv"]
    row = pd.read_csv(tmp_path / "results" / "leaderboard" / "cifar10.csv").iloc[0]
    assert (row["Training"], row["Arch"], row["Outlier_Data"]) == ("mine", "resnet10t", "/")


@pytest.mark.parametrize(
    ("record", "training", "outliers"),
    [
        (PLAIN, "CrossEntropy", False),
        (PLAIN | {"method": "cider"}, "name", False),
        (PLAIN | {"outliers": "x"}, "name", True),
        (PLAIN | {"outliers": "x", "outlier_form": {}}, "name", False),
        (PLAIN | {"outliers": "x", "outlier_content": "z"}, "name", False),
        (None, "name", None),
    ],
)
def test_what_counts_as_outlier_data(record, training, outliers, tmp_path):
    about = described("name", Detector(NAMES, "resnet18", 16), detector(tmp_path / "one", record))
    assert (about.training, about.outliers) == (training, outliers)


def test_a_folder_may_be_told_from_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    one = detector(tmp_path / "one", PLAIN)
    loaded = Detector(NAMES, "resnet18", 16)
    assert described("name", loaded, "~/one") == described("name", loaded, one)


def test_rows_need_a_benchmark():
    with pytest.raises(ValueError, match="--leaderboard is of OpenOOD's benchmarks: give --benchmark and --root"):
        open_test_images(TestImages(id="test", leaderboard=True), [])
