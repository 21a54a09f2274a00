"""Each training method within a training: it learns the classes, is taken up after a stop, and its detector scores."""

import json
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from accelerate import Accelerator
from shapes import shapes
from stopped_training import stop_after
from torch.utils.data import get_worker_info

from sona_pipeline.detection.detector import load_detector
from sona_pipeline.evaluation.evaluate import evaluate_detectors
from sona_pipeline.evaluation.score_table import TestSets
from sona_pipeline.training.items import Plain, TrainingSets
from sona_pipeline.training.loop import Training
from sona_pipeline.training.methods import METHODS
from sona_pipeline.training.methods.base import Method
from sona_pipeline.training.methods.cider import CIDER
from sona_pipeline.training.methods.udg import UDG
from sona_pipeline.training.settings import RECIPES
from sona_pipeline.training.train import check_training, train_detector

SETTINGS = replace(RECIPES["small"], image_size=16, epochs=4, batch_size=16, flip=False)
CHANGES = {
    "mcd": {},
    "udg": {},
    "ascood": {"feature_scale": 0.5},
    "cider": {"learning_rate": 0.05},
    "npos": {"learning_rate": 0.05},
}
SCORES = {"mcd": "mcd", "cider": "knn", "npos": "knn"}
NAMES = ["horizontal", "vertical"]


@pytest.fixture(autouse=True)
def short_queue(monkeypatch):
    monkeypatch.setattr("sona_pipeline.training.methods.npos.KEPT", 40)


def arguments(method, validation, pairs):
    settings = replace(SETTINGS, method=method, **CHANGES[method])
    return settings, {"validation": validation, "outliers": pairs if METHODS[method].needs_outliers else None}


@pytest.mark.parametrize("method", CHANGES)
def test_learns_the_classes_and_its_detector_is_loaded_and_scored(method, id_images, validation, pairs, tmp_path):
    settings, options = arguments(method, validation, pairs)
    train_detector(id_images, settings, **options, output=tmp_path / "made")
    score = SCORES.get(method, "energy")
    sets = TestSets(shapes(NAMES, 100, seed=3), {"diagonal": shapes(["diagonal"], 100, seed=4)}, {})
    found = evaluate_detectors(
        [(method, str(tmp_path / "made"))], sets, tmp_path / "results", [score], fit_images=id_images
    )
    values = found.set_index("metric")["mean"]
    assert values["accuracy"].min() > 90
    if options["outliers"]:  # the others have never been shown a diagonal
        assert values["auroc"].min() > 90
    detector = load_detector(tmp_path / "made")
    assert (detector.network.second_head is not None) == (method == "mcd")
    assert detector.network.feature_scale == settings.feature_scale


@pytest.mark.parametrize("method", CHANGES)
def test_stopped_training_goes_on_to_the_same_weights(method, id_images, validation, pairs, tmp_path, monkeypatch):
    settings, options = arguments(method, validation, pairs)
    settings = replace(settings, epochs=3)
    whole = train_detector(id_images, settings, **options, output=tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(2, patch)
        train_detector(id_images, settings, **options, output=tmp_path / "stopped")
    resumed = train_detector(id_images, settings, **options, output=tmp_path / "stopped")
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


class Strengths(Method):
    """Notes the strengths of the outliers that it sees."""

    seen: ClassVar[list[float]] = []

    def expose(self, exposure):
        self.seen.extend(exposure.strengths.tolist())
        return super().expose(exposure)

    def forward(self, step):
        return step.outlier_logits.square().mean()


def test_a_method_of_ones_own_is_trained_by_its_name(id_images, validation, pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(METHODS, "_places", dict(METHODS._places))
    METHODS.add("strengths", f"{__name__}:Strengths")
    strengths = tuple(0.25 if k % 4 else 0.75 for k in range(len(id_images)))
    settings = replace(SETTINGS, method="strengths", min_strength=0.5, epochs=1)
    outliers = replace(pairs, strengths=strengths)
    train_detector(id_images, settings, validation=validation, outliers=outliers, output=tmp_path)
    assert Strengths.seen == [0.75] * (len(id_images) // 4)
    assert json.loads((tmp_path / "training.json").read_text())["method"] == "strengths"


@pytest.mark.parametrize("method", ["mcd", "udg"])
def test_methods_that_are_nothing_without_outliers_are_refused(method, id_images, validation, pairs):
    for changes, outliers in (({}, None), ({"outlier_weight": 0.0}, pairs)):
        with pytest.raises(ValueError, match=f"the method '{method}' is nothing without outliers"):
            train_detector(
                id_images, replace(SETTINGS, method=method, **changes), validation=validation, outliers=outliers
            )


@pytest.mark.parametrize("method", ["ascood", "vos", "cider", "npos"])
def test_outliers_that_a_method_would_not_look_at_are_refused(method, id_images, validation, pairs, tmp_path):
    settings, message = (
        replace(SETTINGS, method=method),
        f"'{method}' is trained without outliers, or makes its own.*'oe'",
    )
    for outliers in (pairs, pairs.outliers):
        with pytest.raises(ValueError, match=message):
            train_detector(id_images, settings, validation=validation, outliers=outliers, output=tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_id_classes_among_real_outliers_are_named(id_images, validation, caplog):
    spelled = id_images.classes[0].upper() + "s"
    outliers = replace(id_images, classes=(spelled, "another"))
    check_training(TrainingSets(id_images, validation, outliers), SETTINGS)
    assert [message.partition(":")[0] for message in caplog.messages] == [
        f"The outliers hold images of {spelled!r}, which are ID classes"
    ]
    caplog.clear()
    check_training(TrainingSets(id_images, validation, outliers.of_classes(["another"])), SETTINGS)
    numbered = [replace(some, classes=("0", "1")) for some in (id_images, validation, outliers)]
    check_training(TrainingSets(*numbered), SETTINGS)
    assert not caplog.messages


@pytest.mark.parametrize("method, epochs, first", [("mcd", 10, 6), ("vos", 5, 3), ("npos", 5, 3)])
def test_the_best_epoch_is_one_that_has_seen_outliers(method, epochs, first, id_images, validation, pairs, monkeypatch):
    """MCD sees them in the second half, the others draw them from two fifths on. The accuracy falls throughout."""
    validate, kept = Training._validate, []
    monkeypatch.setattr(Training, "_validate", lambda self, detector: (100.0 - self.epoch, validate(self, detector)[1]))
    keep = Training._keep
    monkeypatch.setattr(Training, "_keep", lambda self, accuracy: kept.append(self.epoch) or keep(self, accuracy))
    settings = replace(SETTINGS, method=method, epochs=epochs, learning_rate=0.05)
    outliers = pairs if method == "mcd" else None
    train_detector(id_images, settings, validation=validation.take(range(8)), outliers=outliers)
    assert kept == [first]


def test_a_method_without_outliers_may_look_at_all_images(id_images, validation, monkeypatch):
    seen = []
    monkeypatch.setattr(CIDER, "looks_at_all", True)
    monkeypatch.setattr(CIDER, "begin_epoch", lambda self, epoch, *parts: seen.append([len(part) for part in parts]))
    train_detector(id_images, replace(SETTINGS, method="cider", epochs=2), validation=validation)
    assert seen == 2 * [[160, 160, 0]]


def test_two_views_are_augmented_each_by_itself(id_images, validation, pairs, monkeypatch):
    seen = []

    class Watched(Training):
        def _forward(self, batch, progress):
            seen.append(batch)
            return super()._forward(batch, progress)

    monkeypatch.setattr("sona_pipeline.training.train.Training", Watched)
    train_detector(id_images, replace(SETTINGS, epochs=1, method="cider"), validation=validation)
    first, second = (torch.cat([batch[kind] for batch in seen]) for kind in ("image", "view"))
    differ = (first != second).flatten(1).any(dim=1).float().mean()
    assert differ > 0.7  # by the random crop
    train_detector(id_images, replace(SETTINGS, epochs=1), validation=validation, outliers=pairs)
    assert "view" not in seen[-1]
    places = torch.cat([batch["place"] for batch in seen[: len(seen) // 2]])
    assert sorted(places.tolist()) == list(range(160))


def test_workers_decode_what_a_method_looks_at(id_images, pairs, monkeypatch):
    decoded, seen = Plain.__getitem__, []
    monkeypatch.setattr(UDG, "begin_epoch", lambda self, epoch, *features: seen.append(features))
    for workers in (0, 2):

        def read(self, index, expected=workers):
            found = get_worker_info()
            assert (found.num_workers if found else 0) == expected
            return decoded(self, index)

        monkeypatch.setattr(Plain, "__getitem__", read)
        settings = replace(SETTINGS, method="udg")
        Training(TrainingSets(pairs.images, None, pairs), settings, Accelerator(cpu=True), workers=workers)._show_all()
    assert len(seen[0][0]) == len(id_images) and len(seen[0][2]) == len(pairs.outliers)
    assert all(map(torch.equal, *seen))
