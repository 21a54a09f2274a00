"""`sona fit` as a user has it: the plan, a run, a run that was killed, and what it refuses before any work."""

import json
import re
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from small_runs import CLASSES, write_photos, write_settings, write_unknown
from warm_runs import Run, succeed

from sona_pipeline import TINY_DETECTOR, load_detector, open_images, read_rows
from sona_pipeline.cli.app import main
from sona_pipeline.detection.settings import ClassifierSettings
from sona_pipeline.fitting.settings import FitImages, FitJob, FitModels
from sona_pipeline.fitting.sources import open_fit


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("a place")
    write_photos(place / "photos")
    write_unknown(place / "far")
    return place


@pytest.fixture(scope="module")
def words(place) -> list[str]:
    """A run of seconds, without its output."""
    far = f"shades={place / 'far'}"
    return ["fit", "--data", str(place / "photos"), "--far", far, "--check-classes", "2", *write_settings(place)]


@pytest.fixture(scope="module")
def run(place, words) -> Path:
    """A whole run."""
    succeed([*words, "--output", str(place / "run")])
    return place / "run"


def results_in(folder: Path) -> dict:
    """All numbers of a run, and when its outliers and detectors were written."""
    tables = {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*.csv")}
    made = {row["source_key"]: row["sha256"] for row in read_rows(folder / "generated") if "sha256" in row}
    return {"tables": tables, "made": made, "results": json.loads((folder / "results" / "results.json").read_text())}


def test_everything_is_where_the_single_commands_put_it(run):
    assert {path.name for path in run.iterdir()} >= {
        *("generated", "detector", "baseline", "results", "checks", "fit.json", "report.html")
    }
    parts = {part: len(json.loads((run / "fit.json").read_text())[f"{part} images"]) for part in ("train", "test")}
    assert all(parts.values())
    assert load_detector(run / "detector", "cpu").threshold is not None
    runs = json.loads((run / "results" / "results.json").read_text())["runs"]
    assert [one["method"] for one in runs] == ["SONA", "cross-entropy"]
    assert set(runs[0]["results"]["energy"]["far_ood"]) == {"shades", "mean"}
    assert len(list((run / "checks").glob("*/detector/model.safetensors"))) == 2


def test_a_killed_run_goes_on_to_the_same_results(run, place, words):
    other = place / "killed"
    first = Run([*words, "--output", str(other)])
    wanted = other / "detector" / "log.jsonl"
    deadline = time.monotonic() + 300
    while not wanted.exists() and first.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    first.kill()
    assert not (other / "report.html").exists()
    outliers = {path: path.stat().st_mtime_ns for path in (other / "generated" / "outliers").rglob("*.png")}
    assert len(outliers) > 20
    again = Run([*words, "--output", str(other)])
    assert again.wait() == 0, again.errors
    assert {path: path.stat().st_mtime_ns for path in outliers} == outliers
    assert results_in(other) == results_in(run)
    assert "done" in again.output


def test_dry_run_writes_nothing_and_tells_all_steps(words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sona", *words, "--output", str(tmp_path / "out"), "--dry-run"])
    main()
    said = capsys.readouterr().out
    for step in ("generate", "train detector", "train baseline", "evaluate", "check classes", "all"):
        assert step in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "{place}/one-class"], "needs two classes or more"),
        (["--data", "{place}/one-image"], "class 'shirt' has 1 of the 3 images that it needs"),
        (["--check-classes", "5"], "--check-classes is 5, but has to be at most 4"),
        (["--classifier", str(TINY_DETECTOR)], "which are not the same by their names"),
        (["--most-hours", "1e-9"], "take a GPU, fewer images"),
        (["--near", "a={place}/far", "--far", "b={place}/far"], "are one place"),
        (["--test", "{place}/photos"], "are the training images"),
        (["--test", "{place}/others", "--validation", "{place}/others/."], "are the same images"),
        (["--seed", "1", "--output", "{place}/run"], "seed (0 then, 1 now)"),
        (["--output", "{place}/photos/run"], "would count as images"),
        (["--output", "{place}/elsewhere"], "was not made by this command"),
        (["--recipe", "mine"], "Choose from"),
        (["--recipe", "finetune"], "no classifier is kept"),
    ],
)
def test_what_cannot_be_is_told_before_any_work(place, run, words, tmp_path, monkeypatch, capsys, options, message):
    if not (place / "one-image").exists():
        write_photos(place / "one-class", 3, ("shirt",))
        write_photos(place / "others", 3)
        shutil.copytree(place / "photos", place / "one-image")
        for number in range(1, 12):
            (place / "one-image" / "shirt" / f"{number}.png").unlink()
        (place / "elsewhere" / "detector").mkdir(parents=True)
    given = [word.format(place=place) for word in options]
    before = sorted(place.rglob("*"))
    monkeypatch.setattr(sys, "argv", ["sona", *words, "--output", str(tmp_path / "out"), *given])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "out").exists() and sorted(place.rglob("*")) == before


def test_records_of_earlier_runs_are_settings(place, run, tmp_path):
    """The model, labels and steps of an outlier set, and the recipe of a detector, without any other option."""
    job, source = FitJob(tmp_path / "out", seed=4), FitImages(str(place / "photos"))
    models = FitModels(generate_config=run / "generated/settings.json", train_config=run / "detector/training.json")
    opened = open_fit(job, source, models, ClassifierSettings())
    made, trained = (json.loads(path.read_text()) for path in (models.generate_config, models.train_config))
    assert (opened.loading.model, opened.loading.dtype) == ("tiny", "float32")
    assert opened.sources.generation.num_inference_steps == made["num_inference_steps"] == 3
    assert list(opened.sources.generation.ood_labels) == made["ood_labels"]
    assert opened.sources.training.epochs == trained["epochs"] == 2
    assert opened.sources.training.seed == opened.sources.generation.seed == 4
    assert opened.check_classes == 2
    assert not opened.sources.chooses_score  # the record names the score
    assert open_fit(job, source, FitModels(model="tiny"), ClassifierSettings()).sources.chooses_score


def test_images_are_held_out_once(run, place):
    """Each image is in one part, in the shares that are told; test and validation have images of every class."""
    images = open_images(place / "photos")
    tested = pd.read_parquet(run / "results" / "scores" / "SONA-0.parquet")
    tested = tested[tested["group"] == "id"]
    trained = {row["source_key"] for row in read_rows(run / "generated")}
    assert not trained & set(tested["key"])
    assert len(tested) == 8 and np.bincount(tested["label"]).tolist() == [2] * len(CLASSES)
    assert len(trained) == len(images) - 8 - 4


def check_original(run: Path, place: Path) -> None:
    """The classifier as it was is in the results, calibrated by the very images that the others are calibrated by."""
    before, images = load_detector(TINY_DETECTOR, "cpu"), open_images(place / "photos")
    tested = pd.read_parquet(run / "results" / "scores" / "original-0.parquet")
    own = {key: before(images.image(i)) for i, key in enumerate(images.keys)}
    known = tested[tested["group"] == "id"]
    assert [own[key].label for key in known["key"]] == [before.classes[k] for k in known["predicted"]]
    assert known["energy"].tolist() == pytest.approx([own[key].energy for key in known["key"]], abs=1e-4)
    trained = {row["source_key"] for row in read_rows(run / "generated")}
    validation = sorted(said.energy for key, said in own.items() if key not in {*trained, *known["key"]})
    kept = load_detector(run / "original", "cpu")
    assert len(validation) == 6 and kept.threshold == pytest.approx(validation[-1], abs=1e-4)  # 95 % of six are six
    results = json.loads((run / "results" / "results.json").read_text())["runs"]
    assert [one["method"] for one in results] == ["SONA", "cross-entropy", "original"]


def test_a_classifier_is_kept_and_starts_both_detectors(place, tmp_path, monkeypatch, capsys):
    write_photos(tmp_path / "photos", 4, ("dress", "pullover", "shirt", "sneaker", "t-shirt", "trouser"))
    words = ["fit", "--data", str(tmp_path / "photos"), "--near", f"shades={place / 'far'}", "--model", "tiny"]
    words += ["--classifier", str(TINY_DETECTOR), *write_settings(tmp_path)[-4:], "--output", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["sona", *words])
    main()
    said = " ".join(capsys.readouterr().out.split())
    for folder in ("detector", "baseline"):
        kept = json.loads((tmp_path / "run" / folder / "training.json").read_text())
        assert kept["initial_weights"] and kept["freeze_batch_norm"]
        assert load_detector(tmp_path / "run" / folder, "cpu").classes == load_detector(TINY_DETECTOR, "cpu").classes
    assert not (tmp_path / "run" / "checks").exists()
    assert re.search(
        r"near-OOD images it flags \S+ %, the plain classifier \S+ %, the classifier as it was \S+ %\.", said
    )
    check_original(tmp_path / "run", tmp_path)
    monkeypatch.setattr(sys, "argv", ["sona", *words, "--check-classes", "1"])
    with pytest.raises(SystemExit):
        main()
    assert "the classifier knows all" in " ".join(capsys.readouterr().err.split())
