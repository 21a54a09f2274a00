"""Trainings for the score energy+knn: what is kept after the last epoch, stopped runs, fine-tuning, and evaluation."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from shapes import damaged, shapes

from sona_pipeline.detection.calibration import calibrate_detector
from sona_pipeline.detection.detector import Detector, load_detector, save_detector
from sona_pipeline.evaluation.evaluate import evaluate_detectors
from sona_pipeline.evaluation.posthoc import Known, Seen, fitted
from sona_pipeline.evaluation.score_table import TestSets
from sona_pipeline.hub.cards import detector_card
from sona_pipeline.training.loop import Training
from sona_pipeline.training.settings import RECIPES
from sona_pipeline.training.train import train_detector

KINDS = ["horizontal", "vertical"]
SETTINGS = replace(RECIPES["small"], image_size=16, epochs=2, batch_size=16, flip=False, score="energy+knn")


@pytest.fixture(scope="module")
def images():
    return damaged(shapes(KINDS, 80, seed=0), 5)


@pytest.fixture(scope="module")
def validation():
    return shapes(KINDS, 60, seed=1)


@pytest.fixture(scope="module")
def folder(images, validation, tmp_path_factory):
    output = tmp_path_factory.mktemp("trained") / "detector"
    train_detector(images, SETTINGS, validation=validation, output=output)
    return output


def passed(detector, images):
    pixels = detector.pixels([images.image(i) for i in range(len(images))])
    with torch.no_grad():
        return detector(pixels, with_features=True)


def test_the_features_of_all_training_images_are_kept_as_a_test_sees_them(folder, images, validation):
    detector = load_detector(folder, "cpu")
    assert (detector.score, detector.neighbours.shape) == ("energy+knn", (79, 128))
    read = images.take([i for i in range(80) if i != 5])
    expected = torch.nn.functional.normalize(passed(detector, read)[1])
    assert torch.allclose(detector.neighbours.float(), expected, atol=1e-3)
    scores = np.array([said.score for said in detector([validation.image(i) for i in range(60)])])
    assert np.mean(scores <= detector.threshold) == pytest.approx(0.95) and detector.id_rate == 0.95
    assert (scores.mean(), scores.var()) == (pytest.approx(0, abs=1e-3), pytest.approx(2, abs=2))
    batches = [(detector.pixels([read.image(i) for i in range(79)]), torch.tensor(read.labels))]
    post_hoc = fitted("knn", Known(detector, batches))(Seen(detector, detector.pixels([validation.image(3)])))
    (mean, std), (m, s) = (detector.score_parts[part] for part in ("energy", "knn"))
    said = detector(validation.image(3))
    assert said.score == pytest.approx((said.energy - mean) / std + (post_hoc.item() - m) / s, abs=0.05)


def test_a_stopped_run_ends_with_the_same_neighbours(folder, images, validation, tmp_path, monkeypatch):
    closed = Training._close_epoch

    def stop(self, *arguments):
        closed(self, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Training, "_close_epoch", stop)
        train_detector(images, SETTINGS, validation=validation, output=tmp_path)
    again = train_detector(images, SETTINGS, validation=validation, output=tmp_path)
    assert again.settings == load_detector(folder).settings
    for name, value in load_detector(folder).state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_fine_tuning_and_calibration_of_such_a_detector(folder, images, validation, tmp_path):
    energy, start = replace(SETTINGS, score="energy", epochs=1), load_detector(folder, "cpu")
    plain = train_detector(images, energy, classifier=start, validation=validation)
    assert (plain.score, plain.neighbours, plain.score_parts) == ("energy", None, None)
    again = train_detector(images, replace(energy, score="energy+knn", id_rate=None), classifier=start)
    assert len(again.neighbours) in (71, 72) and again.threshold is None
    new = shapes(KINDS, 40, seed=6)
    copy = calibrate_detector(folder, new, 0.9, output=tmp_path / "copy").detector
    scores = np.sort([said.score for said in copy([new.image(i) for i in range(40)])])
    assert copy.threshold == pytest.approx(scores[35]) and torch.equal(
        copy.neighbours, load_detector(folder).neighbours
    )


def test_it_is_evaluated_and_described(folder, validation, tmp_path):
    sets = TestSets(validation, far={"diagonal": shapes(["diagonal"], 30, seed=4, labelled=False)})
    found = evaluate_detectors([("one", str(folder))], sets, tmp_path / "out")
    assert set(found["score"]) == {"energy+knn"}
    results = json.loads((tmp_path / "out" / "results.json").read_text())["runs"][0]["results"]["energy+knn"]
    assert results["id_flagged"] == pytest.approx(5)
    both = evaluate_detectors([("one", str(folder))], sets, tmp_path / "out", ["energy", "energy+knn"])
    assert set(both["score"]) == {"energy", "energy+knn"}
    text = " ".join(str(detector_card("me/detector", load_detector(folder))).split())
    assert "`energy+knn` at temperature 1" in text and "128 features each of 79 training images" in text
    assert "so that 95 % of the ID validation images lie at or below it" in text


def test_a_detector_without_neighbours_is_not_evaluated_by_them(validation, tmp_path):
    save_detector(Detector(KINDS, image_size=16), tmp_path / "plain")
    sets = TestSets(validation)
    with pytest.raises(
        ValueError, match=r"energy\+knn cannot be fitted: .* this detector keeps no features: train one"
    ):
        evaluate_detectors([("one", str(tmp_path / "plain"))], sets, tmp_path / "out", ["energy+knn"])
