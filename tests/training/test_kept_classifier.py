"""Trainings that start from a classifier: its classes, its network, its statistics and its accuracy."""

from dataclasses import replace

import pytest
import torch
from shapes import shapes
from stopped_training import stop_after
from torch import nn

from sona_pipeline.detection.classifiers import as_detector
from sona_pipeline.detection.detector import Detector, load_detector
from sona_pipeline.training.loop import Training
from sona_pipeline.training.settings import RECIPES
from sona_pipeline.training.train import train_detector

SETTINGS = replace(RECIPES["finetune"], epochs=2, batch_size=16, flip=False, outlier_augmentation="none")
SIGHT = {"image_size": 16, "mean": (0.5,) * 3, "std": (0.25,) * 3}


class Bars(nn.Module):
    """A classifier of the user's own, with what it gives in a dictionary."""

    def __init__(self):
        super().__init__()
        self.convolution, self.norm, self.last = nn.Conv2d(3, 8, 5, 2), nn.BatchNorm2d(8), nn.Linear(8, 2)

    def forward(self, pixels: torch.Tensor) -> dict:
        return {"scores": self.last(self.norm(self.convolution(pixels)).relu().amax(dim=(2, 3)))}


@pytest.fixture(scope="module")
def classifier(id_images) -> Detector:
    """Trained by a loop of its own, with the classes in the other order."""
    torch.manual_seed(0)
    module, detector = Bars(), None
    optimizer = torch.optim.Adam(module.parameters(), 0.01)
    detector = as_detector(module, ["Verticals", "horizontal"], **SIGHT)
    pixels = (detector.pixels(map(id_images.image, range(len(id_images)))) - 0.5) / 0.25
    labels = 1 - torch.tensor(id_images.labels)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(pixels)["scores"], labels).backward()
        optimizer.step()
    return as_detector(module, ["Verticals", "horizontal"], **SIGHT)


@torch.no_grad()
def accuracy(detector: Detector, images) -> float:
    logits = detector.eval()(detector.pixels(map(images.image, range(len(images)))))
    names = [detector.classes[k] for k in logits.argmax(dim=1)]
    return sum(name == images.label_name(k) for k, name in enumerate(names)) / len(names)


def statistics_of(detector: Detector) -> torch.Tensor:
    return torch.cat([value for name, value in detector.state_dict().items() if "running" in name])


def test_weights_head_and_order_of_classes_are_kept(classifier, id_images, validation, pairs, tmp_path):
    settings = replace(SETTINGS, learning_rate=1e-9)
    options = {"classifier": classifier, "validation": validation, "outliers": pairs, "output": tmp_path}
    detector = train_detector(id_images, settings, **options)
    assert detector.classes == ["vertical", "horizontal"]  # as the images have them
    assert accuracy(detector, validation) > 0.9
    for name, value in classifier.state_dict().items():
        torch.testing.assert_close(detector.state_dict()[name], value, atol=1e-6, rtol=0)
    assert train_detector(id_images, settings, **options).threshold == detector.threshold  # only loaded
    assert load_detector(tmp_path, "cpu", Bars()).settings == detector.settings
    assert detector.settings["network"] == "own" and detector.image_size == 16


def test_training_tells_outliers_and_leaves_the_statistics_of_batch_norm(classifier, id_images, validation, pairs):
    settings = replace(SETTINGS, learning_rate=0.02, epochs=4)
    tuned = train_detector(id_images, settings, classifier=classifier, validation=validation, outliers=pairs)
    assert torch.equal(statistics_of(tuned), statistics_of(classifier))
    moving = replace(settings, freeze_batch_norm=False)
    moved = train_detector(id_images, moving, classifier=classifier, validation=validation, outliers=pairs)
    assert not torch.equal(statistics_of(moved), statistics_of(classifier))

    @torch.no_grad()
    def gap(detector: Detector) -> float:
        known, unknown = (detector.pixels(map(some.image, range(100))) for some in (validation, pairs.outliers))
        return (detector.ood_score(detector(unknown)).mean() - detector.ood_score(detector(known)).mean()).item()

    assert gap(tuned) > gap(classifier) + 0.1
    assert accuracy(tuned, validation) > 0.9


def test_statistics_are_used_and_not_only_kept(classifier, id_images, validation, pairs, monkeypatch):
    """Each step sees the network as it is in use: the logits of a batch do not depend on what else is in it."""
    seen = []

    class Watched(Training):
        def _forward(self, batch, progress):
            step, logits, labels = super()._forward(batch, progress)
            if not seen:
                with torch.no_grad():
                    self.model.eval()
                    seen.append((logits, self.model(batch["image"].float() / 255)))
                    self._train_mode()
            return step, logits, labels

    monkeypatch.setattr("sona_pipeline.training.train.Training", Watched)
    train_detector(id_images, SETTINGS, classifier=classifier, validation=validation, outliers=pairs)
    torch.testing.assert_close(*seen[0])


@pytest.mark.parametrize(
    ("keep", "accuracies", "share", "epoch"),
    [
        ("last", [90, 91, 80, 88, 89.5], 0.75, 3),
        ("last", [90, 91, 89.5, 80, 88.9, 89.1], 0.5, 3),
        ("best", [90, 88, 88.5, 80, 88.5, 88.9, 89], 0.25, 2),
        ("last", [90, 88, 80, 80, 80, 80, 80, 90], 0.0, 3),  # the classifier's own weights
    ],
)
def test_weights_go_back_as_far_as_the_accuracy_asks(
    keep, accuracies, share, epoch, classifier, id_images, validation, pairs, monkeypatch, capsys
):
    """Accuracies are of the classifier, of three epochs, and of the shares that are tried."""
    settings = replace(SETTINGS, epochs=3, keep=keep, learning_rate=0.01)
    weights = [{name: value.clone() for name, value in classifier.state_dict().items()}]
    close, validate, given = Training._close_epoch, Training._validate, iter(accuracies)

    def watched(self, *arguments):
        weights.append({name: value.clone() for name, value in self.detector.state_dict().items()})
        close(self, *arguments)

    monkeypatch.setattr(Training, "_close_epoch", watched)
    monkeypatch.setattr(Training, "_validate", lambda self, model: (next(given, 0.0), validate(self, model)[1]))
    detector = train_detector(id_images, settings, classifier=classifier, validation=validation, outliers=pairs)
    for name, value in detector.state_dict().items():
        start, end = weights[0][name], weights[epoch][name]
        expected = (1 - share) * start + share * end if end.is_floating_point() else end
        torch.testing.assert_close(value, expected)
    said = " ".join(capsys.readouterr().out.split())
    warned = f"falls from 90.0 to {accuracies[4]:.1f} %: {share:.0%} of the change of the weights is kept"
    assert (warned in said) == (share < 0.75) and ("falls from" in said) == (share < 0.75)
    assert next(given, None) is None


def test_a_stopped_training_watches_the_same_accuracy(classifier, id_images, validation, pairs, tmp_path, monkeypatch):
    options = {"classifier": classifier, "validation": validation, "outliers": pairs}
    settings = replace(SETTINGS, learning_rate=0.01)
    whole = train_detector(id_images, settings, **options, output=tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(1, patch)
        train_detector(id_images, settings, **options, output=tmp_path / "stopped")
    resumed = train_detector(id_images, settings, **options, output=tmp_path / "stopped")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_what_does_not_go_with_a_classifier_is_refused(classifier, id_images, validation, pairs):
    def refused(message: str, images=id_images, validation=validation, **changes):
        with pytest.raises(ValueError, match=message):
            train_detector(
                images, replace(SETTINGS, **changes), classifier=classifier, validation=validation, outliers=pairs
            )

    others = shapes(["horizontal", "diagonal"], 20, seed=0)
    refused("of the classes Verticals, horizontal, and the training images of horizontal, diagonal", images=others)
    refused("not the same by their names: rename", images=shapes(["horizontal", "vertical", "diagonal"], 20, seed=0))
    refused("`pretrained` and a classifier exclude each other", pretrained=True)
    refused("`feature_scale` is 0.5, but the classifier has None", feature_scale=0.5)
    refused("'mcd' trains 2 heads, but the classifier has 1", method="mcd")
    refused("`max_accuracy_drop` is 1.0, but there are no validation images", validation=None, id_rate=None)


def test_without_a_classifier_no_weights_are_brought_back(id_images, validation, pairs, tmp_path):
    """They would come a quarter nearer to random ones."""
    with pytest.raises(ValueError, match=r"`max_accuracy_drop` is 1.0, but no classifier is kept"):
        train_detector(id_images, SETTINGS, validation=validation, outliers=pairs, output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
