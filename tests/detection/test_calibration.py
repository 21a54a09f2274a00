"""New thresholds: quantiles by hand, the share that is accepted, what is written, and what is refused."""

import json
import math
import os
from collections import Counter

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, strategies as st
from PIL import Image
from safetensors.torch import load_file
from shapes import damaged, shapes

from sona_pipeline.data.image_set import ImageSet
from sona_pipeline.detection import calibration
from sona_pipeline.detection.calibration import calibrate_detector
from sona_pipeline.detection.detector import Detector, load_detector, save_detector
from sona_pipeline.detection.settings import CalibrationSettings, wanted_rate
from sona_pipeline.detection.thresholds import fewest, threshold_at, thresholds_by_class
from sona_pipeline.evaluation.evaluate import detector_identity

KINDS = ["horizontal", "vertical", "diagonal"]


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return shapes(KINDS, 90, seed=5)


@pytest.fixture(scope="module")
def detector(images) -> Detector:
    """One that takes half of the images for its first class, and the others for the second."""
    torch.manual_seed(0)
    detector = Detector(KINDS, image_size=16, threshold=-9.0, id_quantiles=[0.0] * 101).eval()
    with torch.no_grad():
        logits = detector(detector.pixels([images.image(i) for i in range(90)]))
        margins = (logits[:, 0] - logits[:, 1]).median()
        detector.network.head.bias -= torch.tensor([margins, 0.0, 100.0])
    return detector


@pytest.fixture
def folder(detector, tmp_path):
    save_detector(detector, tmp_path / "detector")
    return tmp_path / "detector"


def test_thresholds_worked_by_hand():
    scores = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0, 6.0, 7.0, 8.0, 9.0, 10.0])
    assert [threshold_at(scores, rate) for rate in (0.01, 0.1, 0.11, 0.5, 0.89, 0.9, 0.91, 0.99)] == [
        *(1.0, 1.0, 2.0, 5.0, 9.0, 9.0, 10.0, 10.0)
    ]
    assert [threshold_at(torch.arange(1.0, n + 1), rate) for rate, n in ((0.55, 100), (0.81, 300))] == [55, 243]
    predicted = torch.tensor([0] * 40 + [1] * 19 + [2] * 20)
    scores = torch.cat([torch.arange(40.0), torch.arange(19.0), torch.arange(100.0, 120.0)])
    assert thresholds_by_class(scores, predicted, "abcd", 0.95) == [37.0, None, 118.0, None]
    assert [fewest(rate) for rate in (0.5, 0.9, 0.95, 0.97, 0.98, 0.99, 0.999)] == [20, 20, 20, 34, 50, 100, 1000]


@given(
    scores=st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=300),
    thousandths=st.integers(1, 999),
)
def test_the_share_that_is_accepted_is_at_least_the_rate_and_no_lower_score_would_do(scores, thousandths):
    rate, scores = thousandths / 1000, torch.tensor(scores)
    threshold = threshold_at(scores, rate)
    accepted = int((scores.double() <= threshold).sum())
    assert 1000 * accepted >= thousandths * len(scores)
    below = int((scores.double() < threshold).sum())
    assert 1000 * below < thousandths * len(scores)


@pytest.mark.parametrize("options", [{}, {"id_rate": 0.5}, {"id_rate": 0.9, "per_class": True}])
def test_in_place_only_the_settings_change(detector, folder, images, options):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    found = calibrate_detector(folder, images, **options, device="cpu")
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert [name for name in after if after[name] != before.get(name)] == ["config.json"]
    assert os.listdir(folder) == [*before]
    old, new = json.loads(before["config.json"]), json.loads(after["config.json"])
    changed = {name for name in new if new[name] != old[name]}
    assert changed == {"threshold", "id_quantiles", "id_rate"} | (
        {"class_thresholds"} if "per_class" in options else set()
    )
    loaded = load_detector(folder, "cpu")
    assert loaded.settings == found.detector.settings and (found.before, found.images) == (-9.0, 90)
    said = loaded([images.image(i) for i in range(90)])
    accepted = [not one.is_ood for one in said]
    rate = options.get("id_rate", 0.95)
    assert loaded.id_rate == rate and loaded.threshold == sorted(one.score for one in said)[math.ceil(rate * 90) - 1]
    assert np.mean(accepted) >= rate
    if "per_class" in options:
        for name, limit in zip(KINDS, loaded.class_thresholds):
            own = sorted(one.score for one in said if one.label == name)
            assert limit == (own[math.ceil(rate * len(own)) - 1] if own else None)
        assert found.too_few == {"diagonal": 0} and Counter(one.label for one in said).keys() == {*KINDS[:2]}
    assert detector_identity(loaded) == detector_identity(detector)


def test_a_verdict_is_by_the_threshold_of_the_class(detector, images):
    pictures = [images.image(i) for i in range(90)]
    own = detector.with_settings(threshold=1e9, class_thresholds=[-1e9, None, None])
    assert own.thresholds == [-1e9, 1e9, 1e9]
    assert {(one.label, one.is_ood) for one in own(pictures)} == {("horizontal", True), ("vertical", False)}
    again = own.calibrated(torch.arange(10.0), 0.5)
    assert (again.threshold, again.class_thresholds, again.id_rate) == (4.0, None, 0.5)
    with pytest.raises(ValueError, match=r"2 `class_thresholds` and the threshold .* for 3 classes"):
        detector.with_settings(threshold=1.0, class_thresholds=[None, 2.0])
    with pytest.raises(ValueError, match="there has to be one a class, and a common one"):
        own.with_settings(threshold=None, class_thresholds=own.class_thresholds)
    by_hand = own.with_settings(id_rate=0.9).with_settings(threshold=2.0)
    assert (by_hand.thresholds, by_hand.id_rate) == ([2.0] * 3, None)


def test_a_copy_has_the_same_weights_and_leaves_the_detector_alone(folder, images, tmp_path):
    before = (folder / "config.json").read_bytes()
    found = calibrate_detector(folder, images, output=tmp_path / "copy", device="cpu")
    assert (folder / "config.json").read_bytes() == before and found.place == tmp_path / "copy"
    old, new = (load_file(place / "model.safetensors") for place in (folder, tmp_path / "copy"))
    assert old.keys() == new.keys() and all(torch.equal(old[name], new[name]) for name in old)
    assert load_detector(tmp_path / "copy").threshold == found.detector.threshold
    with pytest.raises(ValueError, match="copy holds a detector already: choose another folder"):
        calibrate_detector(folder, images, output=tmp_path / "copy")


def test_classes_of_too_few_images_are_named_and_keep_the_common_threshold(folder, images):
    labels = [said.label for said in load_detector(folder)([images.image(i) for i in range(90)])]
    first, second = ([i for i in range(90) if labels[i] == name] for name in KINDS[:2])
    found = calibrate_detector(folder, images.take(first[:20] + second[:19]), per_class=True, id_rate=0.5)
    assert found.too_few == {"vertical": 19, "diagonal": 0}
    assert found.detector.class_thresholds[1:] == [None, None]
    words = found.in_words()
    assert "1 of 3 classes have a threshold of their own." in words
    assert words[-1].startswith("The common one is for those with fewer than 20 images: ")
    with pytest.raises(ValueError, match=r"a class needs 1000 images .* at an ID rate of 0.999, but the largest"):
        calibrate_detector(folder, images, 0.999, per_class=True)
    assert load_detector(folder).settings == found.detector.settings


def test_two_classes_of_one_name_have_thresholds_of_their_own(detector, tmp_path):
    """As ImageNet's bird and its machine, which several classifiers both call "crane"."""
    plain = shapes(KINDS, 90, seed=5, labelled=False)
    named = detector.with_settings(classes=["crane", "crane", "moth"])
    found = calibrate_detector(named, plain, 0.9, per_class=True, output=tmp_path / "two", device="cpu")
    apart = calibrate_detector(detector, plain, 0.9, per_class=True, output=tmp_path / "one", device="cpu")
    assert found.detector.class_thresholds == apart.detector.class_thresholds
    assert found.too_few == {"moth": 0} and "2 of 3 classes have a threshold of their own." in found.in_words()


def test_images_without_classes_serve_and_unreadable_ones_are_counted(folder, images):
    plain = shapes(KINDS, 90, seed=5, labelled=False)
    expected = calibrate_detector(folder, images.take(range(2, 90)), per_class=True, id_rate=0.9).detector
    found = calibrate_detector(folder, damaged(plain, 0, 1), per_class=True, id_rate=0.9)
    assert found.detector.settings == expected.settings and found.images == 88
    assert found.unreadable == [f"5-{i}: 5-{i} cannot be read as an image: broken" for i in range(2)]
    assert (
        found.in_words()[0]
        == f"[yellow]Images that cannot be read, and do not count: 2; the first: {found.unreadable[0]}[/]"
    )


def test_what_cannot_be_calibrated_is_refused_and_nothing_is_written(folder, images, monkeypatch, tmp_path):
    before = (folder / "config.json").read_bytes()
    for rate in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"the rate of accepted ID images is .*, but has to be between 0 and 1"):
            calibrate_detector(tmp_path / "nowhere", images, rate)
    with pytest.raises(ValueError, match="there are no images to calibrate by"):
        calibrate_detector(folder, images.take([]))
    with pytest.raises(ValueError, match="none of the 3 images can be read; the first: 5-0"):
        calibrate_detector(folder, damaged(images.take(range(3)), 0, 1, 2))
    other = ImageSet(images.keys, images.labels, ("horizontal", "moth", "bee"), images._open)
    with pytest.raises(ValueError, match=r"classes \['moth', 'bee'\], which the detector does not know"):
        calibrate_detector(folder, other)
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        calibrate_detector(tmp_path / "nowhere", images, output=tmp_path / "copy")
    gone = ImageSet(images.keys, (), (), lambda i: Image.open(tmp_path / "gone.png"))
    with pytest.raises(FileNotFoundError, match="none of the 90 images can be had"):
        calibrate_detector(folder, gone)
    broken = load_detector(folder, "cpu")
    broken.network.head.bias.data[0] = float("nan")
    monkeypatch.setattr(calibration, "load_classifier", lambda *_: broken)
    with pytest.raises(ValueError, match="90 of 90 ID scores are NaN or infinite: no threshold in them"):
        calibrate_detector(folder, images)
    with pytest.raises(
        ValueError, match=r"me/detector is no folder of a detector: give a folder for the calibrated copy"
    ):
        calibrate_detector("me/detector", images)
    assert (folder / "config.json").read_bytes() == before and not (tmp_path / "copy").exists()


def test_a_detector_in_memory_and_a_classifier_of_others_go_to_a_folder(detector, images, tmp_path):
    found = calibrate_detector(detector, images, 0.9, output=tmp_path / "one")
    assert load_detector(tmp_path / "one", "cpu").threshold == found.detector.threshold
    with pytest.raises(ValueError, match="this detector is no folder of a detector: give a folder"):
        calibrate_detector(detector, images)
    model = timm.create_model("resnet10t", num_classes=3).eval()
    timm.models.save_for_hf(model, tmp_path / "net", model_config={"label_names": KINDS}, safe_serialization=True)
    config = (tmp_path / "net" / "config.json").read_bytes()
    with pytest.raises(ValueError, match="net is no folder of a detector: give a folder for the calibrated copy"):
        calibrate_detector(tmp_path / "net", images)
    kept = calibrate_detector(tmp_path / "net", images, 0.9, output=tmp_path / "two").detector
    assert (tmp_path / "net" / "config.json").read_bytes() == config
    assert torch.equal(load_detector(tmp_path / "two", "cpu").network.head.weight.cpu(), model.fc.weight)
    assert sum(said.is_ood for said in kept.stream(images.image(i) for i in range(90))) == 9


def test_the_rate_may_be_said_as_false_alarms():
    assert wanted_rate(CalibrationSettings("d")) == 0.95
    assert [wanted_rate(CalibrationSettings("d", false_alarms=x)) for x in (0.01, 0.1, 0.001)] == [0.99, 0.9, 0.999]
    with pytest.raises(ValueError, match="--id-rate and --false-alarms exclude each other"):
        wanted_rate(CalibrationSettings("d", id_rate=0.9, false_alarms=0.1))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("id_rate", 1, "has to be between 0 and 1, or null"),
        ("class_thresholds", [1.0, "high", None], "has to be a number or null a class, or null"),
        ("class_thresholds", [1.0, None], "cannot be built: there are 2 `class_thresholds`"),
    ],
)
def test_settings_of_a_calibration_that_cannot_be_are_refused(folder, name, value, message):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(ValueError, match=message):
        load_detector(folder)
