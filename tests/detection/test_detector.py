import json
import os
import re
import subprocess

import numpy as np
import pytest
import torch
from loopback_hub import LoopbackHub
from PIL import ExifTags, Image
from safetensors.torch import load_file, save_file
from shapes import shapes
from warm_python import fresh_python

from sona_pipeline.detection.detector import Detector, load_detector, save_detector
from sona_pipeline.detection.export import Graph
from sona_pipeline.detection.scores.of_logits import energy, msp


@pytest.fixture(scope="module")
def detector() -> Detector:
    torch.manual_seed(0)
    return Detector(["cat", "dog", "eel"], image_size=16, threshold=-1.2).eval()


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    images = shapes(["horizontal", "diagonal"], 9, seed=0)
    return [images.image(i) for i in range(9)]


def test_what_it_says_of_an_image_follows_from_the_logits(detector, pictures):
    with torch.no_grad():
        logits = detector(detector.pixels(pictures))
    for said, row in zip(detector(pictures), logits.double().tolist()):
        assert said.label == detector.classes[int(np.argmax(row))]
        assert said.confidence == pytest.approx(np.exp(max(row)) / np.exp(row).sum(), rel=1e-4)
        assert said.energy == said.score == pytest.approx(-np.log(np.exp(row).sum()), rel=1e-4)
        assert said.is_ood == (said.score > -1.2)


def test_streams_in_batches_from_files_and_images_and_takes_single_ones(detector, pictures, tmp_path):
    paths = []
    for i, picture in enumerate(pictures):
        paths.append(tmp_path / f"ein Bild ü {i}.png")
        picture.save(paths[-1])
    whole = detector(pictures)
    taken = []
    stream = detector.stream((taken.append(path) or path for path in paths), batch_size=4)
    assert not taken
    first = next(stream)
    assert len(taken) == 4
    found = [first, *stream]
    assert [one.label for one in found] == [one.label for one in whole]
    assert [one.energy for one in found] == pytest.approx([one.energy for one in whole], rel=1e-4)
    assert detector(str(paths[2])).energy == detector(pictures[2]).energy == pytest.approx(whole[2].energy, rel=1e-4)
    assert detector([]) == []


def test_a_photo_of_a_phone_is_the_same_by_its_path_and_opened(detector, tmp_path):
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 12, 3), np.uint8))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    photo.save(tmp_path / "photo.png", exif=exif)
    with Image.open(tmp_path / "photo.png") as opened:
        of_opened, whole = detector.pixels([opened]), detector.whole(opened)
        assert detector(opened) == detector(tmp_path / "photo.png")
    upright = photo.transpose(Image.Transpose.ROTATE_270)
    assert (of_opened == detector.pixels([upright])).all() and (whole == detector.whole(upright)).all()


@pytest.mark.parametrize("bias", [float("nan"), float("inf"), float("-inf")])
def test_what_has_no_score_is_not_known(pictures, bias):
    broken = Detector(["cat", "dog"], image_size=16, threshold=1e9)
    broken.network.head.bias.data[:] = bias
    assert [said.is_ood for said in broken(pictures[:2])] == [True, True]
    graph = Graph(broken, torch.float32, True)
    assert graph(torch.zeros(3, 3, 16, 16, dtype=torch.uint8))[-1].tolist() == [True] * 3


def test_preprocessing_is_scaling_cropping_and_normalization():
    detector = Detector(["a", "b"], image_size=16, crop_pct=0.5, mean=[0.1, 0.2, 0.3], std=[0.5, 0.4, 0.25]).eval()
    ramp = Image.fromarray(np.arange(32 * 32 * 3, dtype=np.uint8).reshape(32, 32, 3))
    pixels = detector.pixels([ramp])
    assert torch.equal(pixels[0].mul(255).byte(), torch.from_numpy(np.array(ramp))[8:24, 8:24].permute(2, 0, 1))
    normal = torch.stack([(pixels[0, k] - m) / s for k, (m, s) in enumerate([(0.1, 0.5), (0.2, 0.4), (0.3, 0.25)])])
    with torch.no_grad():
        assert torch.allclose(detector(pixels), detector.network(normal.unsqueeze(0))[0], atol=1e-5)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "I;16", "1", "CMYK"])
def test_images_of_any_mode_and_shape_are_taken(detector, mode):
    picture = Image.new(mode, (90, 7))
    assert detector(picture).label in detector.classes


def test_saved_and_loaded_it_says_the_same(detector, pictures, tmp_path):
    other = detector.with_settings(score="msp", temperature=2.0, threshold=-0.5)
    save_detector(other, tmp_path / "one")
    loaded = load_detector(tmp_path / "one")
    assert loaded(pictures) == other(pictures)
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    assert (config["classes"], config["score"], config["threshold"]) == (["cat", "dog", "eel"], "msp", -0.5)
    assert sorted(path.suffix for path in (tmp_path / "one").iterdir()) == [".json", ".md", ".safetensors"]
    with torch.no_grad():
        expected = msp(loaded(loaded.pixels(pictures)), 2.0)
    assert [one.score for one in loaded(pictures)] == pytest.approx(expected.tolist(), rel=1e-4)


def test_loading_says_nothing(detector, tmp_path, capsys):
    save_detector(detector, tmp_path)
    load_detector(tmp_path)
    assert capsys.readouterr() == ("", "")


def test_what_is_no_detector_is_refused(detector, tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no detector"):
        load_detector(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(FileNotFoundError, match="but no detector"):
        load_detector(tmp_path)


def test_damaged_and_foreign_weights_are_refused(detector, tmp_path):
    save_detector(detector, tmp_path)
    path = tmp_path / "model.safetensors"
    content, weights = path.read_bytes(), load_file(path)
    path.write_bytes(content[:-100])
    with pytest.raises(ValueError, match=r"model.safetensors of .* is damaged: copy or download it again"):
        load_detector(tmp_path)
    without = {name: value for name, value in weights.items() if name != "network.head.bias"}
    wider = weights | {"network.head.bias": torch.zeros(4)}
    for wrong in (without, wider):
        save_file(wrong, path)
        with pytest.raises(ValueError, match=r"do not belong together: .*network\.head\.bias"):
            load_detector(tmp_path)
    path.unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"the weights of .* cannot be read"):
        load_detector(tmp_path)
    path.write_bytes(content)
    (tmp_path / "config.json").write_text('{"network": "resnet8"}')
    with pytest.raises(ValueError, match=r"do not belong together: .*'classes'"):
        load_detector(tmp_path)


REFUSALS = """
import sys
from sona_pipeline import load_detector
for name in sys.argv[1:]:
    try:
        load_detector(name)
    except (ValueError, OSError) as error:
        print(name, type(error).__name__, error)
"""


def test_what_is_no_detector_on_the_hub_is_refused_and_a_pickle_is_not_opened(detector, tmp_path):
    save_detector(detector, tmp_path / "pickled")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    torch.save(detector.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    names = ["user/pickled", "user/bert", "user/none"]
    with LoopbackHub() as hub:
        for name in names[:2]:
            hub.add(name, tmp_path / name.removeprefix("user/"))
        environment = os.environ | hub.environment(tmp_path / "home")
        command = [fresh_python(), "-c", REFUSALS, *names]
        said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    assert re.match(r"user/pickled ValueError .*pytorch_model\.bin is a pickle, and is not loaded", said[0])
    assert said[1].startswith("user/bert FileNotFoundError user/bert holds a model, but no detector")
    assert said[2].startswith("user/none FileNotFoundError user/none is neither a folder nor a detector on the Hub")
    assert len(said) == 3


@pytest.mark.parametrize("count", [1, 19, 20, 100, 137])
@pytest.mark.parametrize("rate", [0.5, 0.95, 0.99])
def test_threshold_is_the_lowest_that_accepts_the_rate(detector, count, rate):
    scores = torch.randn(count, generator=torch.Generator().manual_seed(count))
    threshold = detector.calibrated(scores, rate).threshold
    accepted = [(scores <= limit).float().mean().item() for limit in scores.double().tolist()]
    enough = [limit for limit, share in zip(scores.double().tolist(), accepted) if share >= rate - 1e-6]
    assert threshold == min(enough)


@pytest.mark.parametrize(
    ("scores", "rate", "message"),
    [([], 0.95, "0 of 0"), ([1.0, float("nan")], 0.95, "1 of 2"), ([1.0], 0.0, "is 0.0"), ([1.0], 1.0, "is 1.0")],
)
def test_thresholds_that_cannot_be_are_refused(detector, scores, rate, message):
    with pytest.raises(ValueError, match=message):
        detector.calibrated(torch.tensor(scores), rate)


def test_without_a_threshold_there_is_a_label_and_no_verdict(pictures):
    plain = Detector(["a", "b"], image_size=16)
    assert {said.is_ood for said in plain(pictures)} == {None}
    assert {said.label for said in plain(pictures)} <= {"a", "b"}
    assert plain(plain.pixels(pictures)).shape == (9, 2)
    with pytest.raises(ValueError, match="temperature is 0, but has to be above 0"):
        Detector(["a", "b"], temperature=0)
    with pytest.raises(ValueError, match="score is 'entropy'"):
        Detector(["a", "b"], score="entropy")


def test_devices_that_are_not_there_are_refused(detector, tmp_path):
    save_detector(detector, tmp_path)
    with pytest.raises(ValueError, match="the device toaster cannot be used"):
        load_detector(tmp_path, "toaster")


WRONG = {
    "surprise": (1, r"has settings that this version does not know: surprise; .* pip install --upgrade"),
    "score": ("entropy", r"the detector in .* cannot be built: the score is 'entropy'"),
    "threshold": ("high", r"`threshold` in config.json of .* is 'high', but has to be a number or null"),
    "id_quantiles": ([1.0], r"`id_quantiles` .* has to be 101 numbers or null"),
    "classes": (None, r"`classes` .* is None, but has to be a list of names"),
    "image_size": ("16", r"`image_size` .* is '16', but has to be 1 or more"),
    "crop_pct": (0, r"`crop_pct` .* is 0, but has to be above 0 and at most 1"),
    "mean": ([0.5], r"`mean` .* has to be three numbers"),
    "std": ([0.5, 0.5, 0.0], r"`std` .* has to be three numbers above 0"),
    "temperature": (None, r"`temperature` .* is None, but has to be above 0"),
    "network": ("timm:nope", r"the detector in .* cannot be built: timm has no model named 'nope'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_settings_that_cannot_be_followed_are_refused(detector, name, tmp_path):
    save_detector(detector, tmp_path)
    path = tmp_path / "config.json"
    value, message = WRONG[name]
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(ValueError, match=message):
        load_detector(tmp_path)


def test_a_threshold_that_is_not_there_is_none(detector, tmp_path):
    save_detector(detector, tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({key: v for key, v in json.loads(path.read_text()).items() if key != "threshold"}))
    assert load_detector(tmp_path).threshold is None
    for text, error in (('["network"]', FileNotFoundError), ('{"network": ', ValueError)):
        path.write_text(text)
        with pytest.raises(error, match=r"holds a model, but no detector|config.json of .* is damaged"):
            load_detector(tmp_path)


def test_files_of_a_detector_follow_the_umask(detector, tmp_path):
    before = os.umask(0o027)
    try:
        save_detector(detector, tmp_path / "one")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "one").iterdir()} == {0o640}


def test_copies_stay_in_their_mode(detector):
    assert not detector.with_settings(threshold=0.0).training
    assert Detector(["a", "b"]).with_settings(threshold=0.0).training


def test_changed_settings_leave_the_original_alone(detector, pictures):
    colder = detector.with_settings(temperature=0.5, threshold=0.0)
    assert (colder.threshold, detector.threshold, detector.temperature) == (0.0, -1.2, 1.0)
    with torch.no_grad():
        logits = detector(detector.pixels(pictures))
    assert [one.score for one in colder(pictures)] == pytest.approx(energy(logits, 0.5).tolist(), rel=1e-4)
    assert not any(np.shares_memory(a.detach().numpy(), b.detach().numpy())
                   for a, b in zip(colder.parameters(), detector.parameters()))  # fmt: skip
