import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from sona_pipeline import networks
from sona_pipeline.data import ImageSet
from sona_pipeline.detector import Detector, predict
from sona_pipeline.evaluate import evaluate_detector
from sona_pipeline.metrics import ood_metrics
from sona_pipeline.outlier_set import OutlierPairs
from sona_pipeline.train import TrainingSettings, detection_loss, train_detector

SETTINGS = TrainingSettings(image_size=16, epochs=4, batch_size=16, flip=False)


def shapes(kinds: list[str], count: int, seed: int, labelled: bool = True) -> ImageSet:
    """Noisy pictures of horizontal, vertical or diagonal bars."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:16, :16]
    bars = {"horizontal": y, "vertical": x, "diagonal": x + y}
    labels = [k % len(kinds) for k in range(count)]
    pictures = []
    for label in labels:
        wave = 128 + 80 * np.sin(bars[kinds[label]] * 1.3 + rng.uniform(0, 6))
        pictures.append(Image.fromarray((wave + rng.normal(0, 12, wave.shape)).clip(0, 255).astype(np.uint8)))
    keys = tuple(f"{seed}-{k}" for k in range(count))
    return ImageSet(keys, tuple(labels) if labelled else (), tuple(kinds) if labelled else (), pictures.__getitem__)


def beside(images: ImageSet, outliers: ImageSet, strength: float = 1.0) -> OutlierPairs:
    """ID images paired with outliers of one strength, without round trips."""
    return OutlierPairs(images, outliers, None, (strength,) * len(outliers))


@pytest.fixture(scope="module")
def id_images():
    return shapes(["horizontal", "vertical"], 160, seed=0)


@pytest.fixture(scope="module")
def validation():
    return shapes(["horizontal", "vertical"], 100, seed=1)


def test_learns_the_classes_and_to_tell_outliers(id_images, validation):
    outliers = shapes(["diagonal"], 160, seed=2, labelled=False)
    detector = train_detector(id_images, SETTINGS, validation=validation, pairs=beside(id_images, outliers))
    test = shapes(["horizontal", "vertical"], 100, seed=3)
    found = predict(detector, test)
    assert (found.labels == np.array(test.labels)).mean() > 0.95
    assert ood_metrics(found.energies, predict(detector, shapes(["diagonal"], 100, seed=4)).energies)["auroc"] > 95


def test_threshold_flags_5_percent_of_the_validation_images(id_images, validation):
    detector = train_detector(id_images, replace(SETTINGS, epochs=1), validation=validation)
    assert (predict(detector, validation).energies > detector.threshold).mean() == pytest.approx(0.05, abs=0.011)


def test_same_seed_same_weights(id_images, validation):
    def weights(seed: int) -> torch.Tensor:
        detector = train_detector(id_images, replace(SETTINGS, epochs=1, seed=seed), validation=validation)
        return torch.cat([p.flatten() for p in detector.parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_loss_is_cross_entropy_and_weighted_uniformity_worked_by_hand():
    """A linear model, so that batches of parts and the whole give the same logits."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    names = ("image", "outlier", "reconstruction")
    batch = {name: torch.randint(0, 256, (4, 3, 2, 2), dtype=torch.uint8) for name in names}
    log_probabilities = {name: model(pixels.float() / 255).log_softmax(dim=1) for name, pixels in batch.items()}
    batch |= {"label": torch.tensor([0, 1, 2, 1]), "is_used": torch.tensor([True, False, True, False])}
    rows = torch.arange(4)
    known = {name: -log_probabilities[name][rows, batch["label"]].mean() for name in ("image", "reconstruction")}
    uniformity = -log_probabilities["outlier"][[0, 2]].mean()
    expected = (known["image"] + known["reconstruction"]) / 2 + 0.5 * uniformity
    assert detection_loss(model, batch, 0.5).item() == pytest.approx(expected.item(), rel=1e-5)
    only = {name: batch[name] for name in ("image", "label")}
    assert detection_loss(model, only, 0.5).item() == pytest.approx(known["image"].item(), rel=1e-5)
    unused = batch | {"is_used": torch.zeros(4, dtype=torch.bool)}
    assert detection_loss(model, unused, 0.5).isfinite()


def test_sets_that_do_not_go_together_are_refused(id_images, validation):
    three = id_images.take(range(3))
    with pytest.raises(ValueError, match="160 images and 3 with outliers"):
        train_detector(id_images, SETTINGS, validation=validation, pairs=beside(three, three))
    with pytest.raises(ValueError, match="no outlier has the strength"):
        train_detector(id_images, SETTINGS, validation=validation, pairs=beside(id_images, id_images, strength=0.1))
    with pytest.raises(ValueError, match="validation classes"):
        train_detector(id_images, SETTINGS, validation=shapes(["horizontal", "diagonal"], 4, 0))
    with pytest.raises(ValueError, match="two classes or more"):
        train_detector(shapes(["horizontal"], 4, 0), SETTINGS, validation=validation)


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_networks_give_logits_and_unknown_names_are_refused(name):
    assert networks.build(name, 7, 32)(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    with pytest.raises(ValueError, match="no network named 'resnet'"):
        networks.build("resnet", 7, 32)


def test_saved_detector_gives_the_same_energies(id_images, validation, tmp_path):
    detector = train_detector(id_images, replace(SETTINGS, epochs=1), validation=validation)
    detector.save_pretrained(tmp_path)
    loaded = Detector.from_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["classes"] == ["horizontal", "vertical"]
    assert config["threshold"] == loaded.threshold == detector.threshold
    assert (predict(loaded, validation).energies == predict(detector, validation).energies).all()


def test_detect_gives_label_energy_and_verdict(id_images, validation):
    detector = train_detector(id_images, SETTINGS, validation=validation)
    pictures = [validation.image(i) for i in range(40)]
    found = predict(detector, validation.take(range(40)))
    detections = detector.detect(pictures)
    assert [d.label for d in detections] == [detector.classes[k] for k in found.labels]
    assert [d.energy for d in detections] == pytest.approx(found.energies.tolist(), rel=1e-4)
    assert [d.is_ood for d in detections] == [e > detector.threshold for e in found.energies]
    with pytest.raises(ValueError, match="has no threshold"):
        Detector(["a", "b"]).detect(pictures)


def test_pickled_weights_are_refused(tmp_path):
    with pytest.raises(ValueError, match="is a pickle"):
        Detector._load_as_pickle(Detector(["a", "b"]), str(tmp_path / "pytorch_model.bin"), "cpu", True)


def test_evaluation_is_metrics_on_scores_of_every_set(id_images, validation):
    detector = train_detector(id_images, replace(SETTINGS, epochs=2), validation=validation)
    near, far = shapes(["diagonal"], 50, 5, labelled=False), shapes(["horizontal"], 30, 6, labelled=False)
    evaluation = evaluate_detector(detector, validation, {"diagonal": near}, {"same": far, "again": near})
    scores = {name: predict(detector, s).energies for name, s in {"id": validation, "diagonal": near}.items()}
    results = evaluation.results
    assert results["near_ood"]["diagonal"] == ood_metrics(scores["id"], scores["diagonal"])
    assert results["near_ood"]["mean"] == results["near_ood"]["diagonal"]
    far_rows = [results["far_ood"][name]["auroc"] for name in ("same", "again")]
    assert results["far_ood"]["mean"]["auroc"] == pytest.approx(np.mean(far_rows))
    accuracy = (predict(detector, validation).labels == np.array(validation.labels)).mean()
    assert results["id_accuracy"] == pytest.approx(100 * accuracy)


def test_evaluation_maps_classes_by_name(id_images, validation):
    detector = train_detector(id_images, SETTINGS, validation=validation)
    turned = validation.with_classes(["vertical", "horizontal"])
    assert evaluate_detector(detector, turned, {}, {}).results["id_accuracy"] > 90
    with pytest.raises(ValueError, match=r"have classes \['diagonal'\]"):
        evaluate_detector(detector, shapes(["diagonal"], 4, 0), {}, {})
    with pytest.raises(ValueError, match="names of OOD sets"):
        evaluate_detector(detector, validation, {"a": validation}, {"a": validation})
