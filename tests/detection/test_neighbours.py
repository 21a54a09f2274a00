"""The score energy+knn: beside loops in NumPy and scikit-learn's neighbours; what is kept, saved and refused."""

import json
import math
import subprocess

import numpy as np
import pytest
import torch
from shapes import damaged, shapes
from sklearn.neighbors import NearestNeighbors
from warm_python import package_python

from sona_pipeline.data import sample
from sona_pipeline.data.image_set import ImageSet
from sona_pipeline.detection.detector import WITHOUT_NEIGHBOURS, Detector, load_detector, save_detector
from sona_pipeline.detection.gradcam import score_cam
from sona_pipeline.detection.neighbours import keep_neighbours
from sona_pipeline.detection.scores.of_features import K, knn
from sona_pipeline.evaluation.evaluate import detector_identity

KINDS = ["horizontal", "vertical"]


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return shapes(KINDS, 80, seed=1)


@pytest.fixture(scope="module")
def validation() -> ImageSet:
    return shapes(KINDS, 30, seed=2)


@pytest.fixture(scope="module")
def plain() -> Detector:
    torch.manual_seed(0)
    return Detector(KINDS, image_size=16, temperature=2.0, threshold=-1.0).eval()


@pytest.fixture(scope="module")
def detector(plain, images, validation) -> Detector:
    return keep_neighbours(plain, images, validation)


def pictures(images: ImageSet) -> list:
    return [images.image(i) for i in range(len(images))]


@torch.no_grad()
def seen(detector: Detector, images: ImageSet) -> tuple[np.ndarray, np.ndarray]:
    """Logits and features in double precision, an image at a time."""
    rows = [detector(detector.pixels([picture]), with_features=True) for picture in pictures(images)]
    return tuple(np.concatenate([row[part].double().numpy() for row in rows]) for part in (0, 1))


def slow_parts(logits, features, kept, temperature, k=50) -> np.ndarray:
    """Energy and distance `[B, 2]`, by loops."""
    rows = []
    for logit, feature in zip(logits, features):
        unit = feature / math.sqrt(sum(value * value for value in feature))
        distances = sorted(math.sqrt(((unit - one) ** 2).sum()) for one in kept)
        power = -temperature * math.log(sum(math.exp(value / temperature) for value in logit))
        rows.append((power, distances[k - 1]))
    return np.array(rows)


def test_scores_are_those_of_a_slow_reference(detector, plain, images, validation):
    _, training = seen(plain, images)
    kept = (training / np.linalg.norm(training, axis=1, keepdims=True)).astype(np.float16).astype(float)
    known = slow_parts(*seen(plain, validation), kept, 2.0)
    mean, std = known.mean(axis=0), known.std(axis=0, ddof=1)
    parts = detector.score_parts
    assert [*parts["energy"], *parts["knn"]] == pytest.approx([mean[0], std[0], mean[1], std[1]], rel=2e-3)
    other = shapes(["diagonal", *KINDS], 12, seed=3)
    expected = ((slow_parts(*seen(plain, other), kept, 2.0) - mean) / std).sum(axis=1)
    said = detector(pictures(other))
    assert [one.score for one in said] == pytest.approx(expected, abs=0.03 * np.abs(expected).max())
    assert [one.energy for one in said] == [one.energy for one in plain(pictures(other))]
    on_validation = np.array([one.score for one in detector(pictures(validation))])
    assert on_validation.mean() == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("count", [1, 7, K, 300])
def test_distances_are_those_of_scikit_learn(count):
    rng = np.random.default_rng(count)
    kept, queries = rng.normal(size=(count, 24)), 5 * rng.normal(size=(40, 24))
    kept /= np.linalg.norm(kept, axis=1, keepdims=True)
    units = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    expected = NearestNeighbors(n_neighbors=min(50, count)).fit(kept).kneighbors(units)[0][:, -1]
    assert knn(torch.from_numpy(queries), torch.from_numpy(kept)).numpy() == pytest.approx(expected, rel=1e-4)
    half = knn(torch.from_numpy(queries), torch.from_numpy(kept).half()).numpy()
    assert half == pytest.approx(expected, rel=2e-3)


LOADED = """
import json, sys
from sona_pipeline import load_detector, sample
detector = load_detector(sys.argv[1], "cpu")
print(json.dumps([said.score for said in detector([sample.id_images("test").image(i) for i in range(8)])]))
"""


def test_saved_and_loaded_in_another_process_it_says_the_same(detector, tmp_path):
    calibrated = detector.calibrated(torch.linspace(-2, 2, 21), 0.9)
    save_detector(calibrated, tmp_path)
    loaded = load_detector(tmp_path, "cpu")
    assert torch.equal(loaded.neighbours, detector.neighbours) and loaded.score_parts == detector.score_parts
    assert detector_identity(loaded) == detector_identity(detector)
    said = calibrated([sample.id_images("test").image(i) for i in range(8)])
    command = [package_python(), "-c", LOADED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == pytest.approx([one.score for one in said], rel=1e-5, abs=1e-5)


def test_what_is_kept_is_drawn_by_the_seed_and_bounded(plain, images, validation):
    width = plain.network.head.in_features
    some, again, other = (
        keep_neighbours(plain, images, validation, seed=seed, limit=2 * width * 25 + 1) for seed in (0, 0, 1)
    )
    assert some.neighbours.shape == (25, width) and some.neighbours.dtype == torch.half
    assert torch.equal(some.neighbours, again.neighbours) and not torch.equal(some.neighbours, other.neighbours)
    whole = keep_neighbours(plain, images, validation).neighbours
    rows = {tuple(row) for row in whole.tolist()}
    assert len(whole) == 80 and {tuple(row) for row in some.neighbours.tolist()} < rows
    assert (some.nearest, plain.nearest) == (round(50 * 25 / 80), 50)
    known = slow_parts(*seen(plain, validation), some.neighbours.double().numpy(), 2.0, some.nearest)
    (mean, std), (m, s) = (some.score_parts[part] for part in ("energy", "knn"))
    expected = (known - [mean, m]) / [std, s]
    assert [one.score for one in some(pictures(validation))] == pytest.approx(expected.sum(axis=1), abs=0.05)
    assert keep_neighbours(plain, images, validation, limit=1).nearest == 1
    unread = keep_neighbours(plain, damaged(images, 3), damaged(validation, 0, 1))
    assert len(unread.neighbours) == unread.settings["neighbours"] == 79


def test_without_validation_images_a_tenth_is_held_out(plain, images):
    alone = keep_neighbours(plain, images)
    assert len(alone.neighbours) == 72 and set(alone.score_parts) == {"energy", "knn"}
    assert alone.score_parts["knn"][0] > 0
    with pytest.raises(ValueError, match=r"energy\+knn needs a training image .* but there are 0 and 2"):
        keep_neighbours(plain, images.take([0, 1]))
    with pytest.raises(ValueError, match="but there are 80 and 1: give more images"):
        keep_neighbours(plain, images, images.take([0]))


def test_the_network_stays_as_it_is_and_so_do_copies(detector, plain, images, validation):
    weights = plain.state_dict()
    assert all(torch.equal(value, detector.state_dict()[name]) for name, value in weights.items())
    assert (detector.score, detector.threshold, plain.score, plain.neighbours) == ("energy+knn", None, "energy", None)
    copy = detector.with_settings(threshold=0.5)
    assert copy(pictures(validation))[0].score == detector(pictures(validation))[0].score
    plainer = detector.with_settings(score="energy", **WITHOUT_NEIGHBOURS)
    assert plainer.neighbours is None and plainer.state_dict().keys() == weights.keys()
    assert keep_neighbours(detector, images, validation).settings == detector.settings
    assert keep_neighbours(plain.with_settings().train(), images, validation).training


def test_one_image_scores_as_it_does_in_a_batch_and_has_a_map(detector, validation):
    said = detector(pictures(validation))
    assert detector(validation.image(4)).score == pytest.approx(said[4].score, abs=1e-3)
    assert score_cam(detector, validation.image(4)).shape == (16, 16)


def test_a_detector_without_neighbours_says_so(detector, plain, tmp_path):
    message = r"'energy\+knn' compares with training images, of which this detector keeps no features: train one"
    for score in (
        lambda: plain.with_settings(score="energy+knn"),
        lambda: plain.ood_score(torch.zeros(1, 2), None, "energy+knn"),
    ):
        with pytest.raises(ValueError, match=message):
            score()
    with pytest.raises(ValueError, match=r"'energy\+knn' is of logits and features: give both"):
        detector.ood_score(torch.zeros(1, 2))
    save_detector(plain, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"score": "energy+knn"}))
    with pytest.raises(ValueError, match=r"the detector in .* cannot be built: .*" + message):
        load_detector(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"neighbours": 79}, r"do not belong together: .*neighbours"),
        ({"neighbours": None, "score": "energy"}, r"do not belong together: .*neighbours"),
        ({"nearest": 0}, "`nearest` .* has to be 1 or more"),
        ({"neighbours": 0}, "`neighbours` .* has to be 1 or more, or null"),
        ({"score_parts": {"energy": [0.0, 0.0], "knn": [0.0, 1.0]}}, "has to be a mean and a standard deviation"),
        ({"score_parts": {"energy": [0.0, 1.0]}}, "`score_parts` .* has to be a mean and a standard deviation"),
    ],
)
def test_settings_that_are_not_of_the_weights_are_refused(detector, tmp_path, changes, message):
    save_detector(detector, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ValueError, match=message):
        load_detector(tmp_path)
