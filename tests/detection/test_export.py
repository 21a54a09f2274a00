"""Exported detectors say what the detectors say, under onnxruntime and torch alone."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

from sona_pipeline import TINY_DETECTOR, __version__, sample
from sona_pipeline.cli.app import app
from sona_pipeline.detection import export
from sona_pipeline.detection.classifiers import as_detector
from sona_pipeline.detection.detector import Detector, load_detector, save_detector
from sona_pipeline.detection.export import export_detector
from sona_pipeline.detection.neighbours import keep_neighbours
from sona_pipeline.detection.scores import SCORES

CLASSES = ["ant", "bee", "cät"]


@pytest.fixture(scope="module")
def detector() -> Detector:
    return load_detector(TINY_DETECTOR, "cpu")


@pytest.fixture(scope="module")
def pixels(detector) -> np.ndarray:
    """500 images, known and unknown, as the bundled detector sees them: uint8 [500, 3, 32, 32]."""
    sets = [sample.id_images("test"), *sample.near_ood().values(), *sample.far_ood().values()]
    images = [images.drawn(100).image(k) for images in sets for k in range(100)]
    return np.stack([detector.one(image).numpy() for image in images[:500]])


@pytest.fixture(scope="module")
def exported(detector, tmp_path_factory):
    """The bundled detector as an ONNX file."""
    path = tmp_path_factory.mktemp("exported") / "detector.onnx"
    return export_detector(detector, path)


def random_detector(**settings) -> Detector:
    """A random detector whose batch statistics are those of noise."""
    torch.manual_seed(0)
    detector = Detector(CLASSES, **settings)
    noise = torch.rand(8, 3, detector.image_size, detector.image_size)
    with torch.no_grad():
        for _ in range(3):
            detector.train()(noise)
    return detector.with_settings(threshold=0.0).eval()


@torch.no_grad()
def answers_of(detector: Detector, pixels: np.ndarray) -> dict[str, np.ndarray]:
    logits, score = detector.scored(torch.from_numpy(pixels).float() / 255)
    own = detector.class_thresholds or []
    limits = {k: limit for k, limit in enumerate(own) if limit is not None}
    flags = [s > limits.get(k, detector.threshold) for s, k in zip(score.tolist(), logits.argmax(1).tolist())]
    found = {"logits": logits, "probabilities": logits.softmax(1), "score": score, "is_ood": torch.tensor(flags)}
    return {name: value.numpy() for name, value in found.items()}


def run(path, pixels: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return dict(zip([output.name for output in session.get_outputs()], session.run(None, {"pixels": pixels})))


def check_equal(found: dict[str, np.ndarray], detector: Detector, pixels: np.ndarray, within: float = 1e-4) -> None:
    own = answers_of(detector, pixels)
    assert list(found) == list(own)
    for name in ("logits", "probabilities", "score"):
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], own[name], rtol=0, atol=within)
    assert found["is_ood"].dtype == bool and 0 < found["is_ood"].sum() < len(pixels)
    limits = [detector.threshold, *(limit for limit in detector.class_thresholds or [] if limit is not None)]
    apart = np.abs(own["score"][:, None] - limits).min(axis=1) > within
    assert (found["is_ood"] == own["is_ood"])[apart].all()


def test_onnx_file_says_of_500_images_what_the_detector_says(exported, detector, pixels):
    assert len(pixels) == 500
    check_equal(run(exported.path, pixels), detector, pixels)
    assert exported.difference < 1e-4 and exported.size == exported.path.stat().st_size


def test_verdicts_are_those_of_the_detector_asked_about_pictures(exported, detector):
    images = sample.id_images("test")
    pictures = [images.image(k) for k in range(20)]
    found = run(exported.path, np.stack([detector.one(picture).numpy() for picture in pictures]))
    for k, said in enumerate(detector(pictures)):
        assert detector.classes[found["probabilities"][k].argmax()] == said.label
        assert found["probabilities"][k].max() == pytest.approx(said.confidence, abs=1e-4)
        assert found["score"][k] == pytest.approx(said.score, abs=1e-4)
        assert found["is_ood"][k] == said.is_ood


def test_batches_of_any_size_are_taken_and_other_pixels_refused(exported, pixels):
    whole = run(exported.path, pixels[:8])
    for count in (0, 1, 3):
        for name, value in run(exported.path, pixels[:count]).items():
            np.testing.assert_allclose(value, whole[name][:count], atol=1e-5)
    for wrong in (pixels[:1].astype(np.float32), pixels[:1, :, :16], pixels[:1].transpose(0, 2, 3, 1)):
        with pytest.raises(Exception, match="INVALID_ARGUMENT"):
            run(exported.path, wrong)


def test_metadata_are_json_and_the_file_is_sound_and_names_no_place(exported, detector):
    model = onnx.load(exported.path)
    onnx.checker.check_model(model, full_check=True)
    assert {(one.domain, one.version) for one in model.opset_import} == {("", 18)}
    about = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert about["classes"] == detector.classes and about["score"] == "energy"
    assert about["threshold"] == detector.threshold and about["versions"]["sona-pipeline"] == __version__
    assert (about["image_size"], about["resize"], about["crop_pct"], about["resample"]) == (32, 32, 1.0, "lanczos")
    assert about["mean"] == [0.485, 0.456, 0.406] and about["channel_order"] == "RGB"
    assert os.fsencode(os.path.dirname(export.__file__)) not in exported.path.read_bytes()


def test_torch_program_says_the_same_and_carries_the_metadata(detector, pixels, tmp_path):
    made = export_detector(TINY_DETECTOR, tmp_path / "detector.pt2", "torch")
    files = {export.METADATA: ""}
    program = torch.export.load(made.path, extra_files=files).module()
    for count in (1, 500):
        found = [value.numpy() for value in program(torch.from_numpy(pixels[:count]))]
        if count > 1:
            check_equal(dict(zip(export.OUTPUTS, found)), detector, pixels)
    assert json.loads(files[export.METADATA]) == export.metadata(detector)
    assert os.fsencode(os.path.dirname(export.__file__)) not in made.path.read_bytes()


@pytest.mark.parametrize("score", [name for name in SCORES if name != "energy"])
def test_every_score_is_exported(score, detector, pixels, tmp_path):
    scores = torch.from_numpy(answers_of(detector, pixels)["logits"])
    other = detector.with_settings(score=score, temperature=2.0)
    other = other.calibrated(other.ood_score(scores), 0.5)
    made = export_detector(other, tmp_path / "detector.onnx")
    check_equal(run(made.path, pixels), other, pixels)


def timm_network(folder) -> dict:
    return {"network": "timm:resnet10t", "image_size": 32}


def vision_transformer(folder) -> dict:
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    ViTForImageClassification(ViTConfig(**small, image_size=32, patch_size=8)).save_pretrained(folder)
    return {"network": f"transformers:{folder}", "image_size": 32}


def every_setting(folder) -> dict:
    normal = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.4, 0.25), "channel_order": "BGR"}
    return {"feature_scale": 0.5, "heads": 2, "image_size": 16, "crop_pct": 0.875, "temperature": 0.5, **normal}


@pytest.mark.parametrize(
    "settings", [lambda _: {"network": "resnet18"}, timm_network, vision_transformer, every_setting]
)
def test_networks_and_settings_of_all_kinds_are_exported(settings, tmp_path):
    detector = random_detector(**settings(tmp_path / "network"))
    pixels = np.random.default_rng(1).integers(0, 256, (20, 3, *2 * [detector.image_size]), np.uint8)
    detector = detector.with_settings(threshold=float(np.median(answers_of(detector, pixels)["score"])))
    made = export_detector(detector, tmp_path / "detector.onnx")
    check_equal(run(made.path, pixels), detector, pixels)
    about = {entry.key: json.loads(entry.value) for entry in onnx.load(made.path).metadata_props}
    assert about == json.loads(json.dumps(export.metadata(detector)))
    assert about["resize"] == {32: 32, 16: 18}[detector.image_size] and about["classes"] == CLASSES


@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_thresholds_of_classes_and_the_score_of_neighbours_are_exported(format, detector, pixels, tmp_path):
    images = sample.id_images("validation")
    both = keep_neighbours(detector, sample.id_images("train").drawn(200), images.drawn(100), shown=False)
    limits = [-1.0, None, 0.5, None, None, 5.0]
    both = both.with_settings(score="energy+knn", threshold=0.0, class_thresholds=limits)
    made = export_detector(both, tmp_path / f"detector{export.EXPORT_SUFFIXES[format]}", format)
    if format == "onnx":
        found = run(made.path, pixels)
    else:
        answers = torch.export.load(made.path).module()(torch.from_numpy(pixels))
        found = dict(zip(export.OUTPUTS, (answer.numpy() for answer in answers)))
    check_equal(found, both, pixels)
    assert export.metadata(both)["class_thresholds"] == limits
    content, kept = made.path.read_bytes(), both.neighbours.contiguous().numpy()
    assert kept.dtype == np.float16 and kept.tobytes() in content
    assert kept.astype(np.float32).tobytes() not in content


class Own(torch.nn.Module):
    """A classifier of the user's, which gives a dictionary."""

    def __init__(self, channels: int):
        super().__init__()
        self.first, self.last = torch.nn.Conv2d(channels, 8, 3), torch.nn.Linear(8, 3)

    def forward(self, pixels):
        return {"logits": self.last(self.first(pixels).relu().mean((2, 3)))}


@pytest.mark.parametrize("order", ["L", "RGBA"])
def test_classifiers_of_the_users_are_exported_with_any_channels(order, tmp_path):
    torch.manual_seed(0)
    detector = as_detector(
        Own(len(order)), CLASSES, image_size=16, mean=(0.5,) * 3, std=(0.2,) * 3, channel_order=order
    )
    detector = detector.with_settings(threshold=0.0)
    pixels = np.random.default_rng(1).integers(0, 256, (20, 3, 16, 16), np.uint8)
    detector = detector.with_settings(threshold=float(np.median(answers_of(detector, pixels)["score"])))
    made = export_detector(detector, tmp_path / "detector.onnx")
    check_equal(run(made.path, pixels), detector, pixels)


@pytest.mark.parametrize("opset", [18, 23])
def test_half_the_bytes_differ_little_and_flag_the_same_images(opset, detector, exported, pixels, tmp_path):
    made = export_detector(detector, tmp_path / "detector.onnx", dtype="float16", opset=opset)
    assert made.size < 0.6 * exported.size
    assert onnx.load(made.path).opset_import[0].version == opset
    check_equal(run(made.path, pixels), detector, pixels, within=0.05)


def test_threshold_is_compared_as_the_detector_compares_it(detector):
    for score in (np.float32(-2.7469966), np.float32(0.1), np.float32(0)):
        for threshold in (
            float(score),
            float(np.nextafter(float(score), -np.inf)),
            float(score) - 1e-9,
            float(score) + 1e-9,
        ):
            graph = export.Graph(detector.with_settings(threshold=threshold), torch.float32, True)
            assert (torch.tensor(score) > graph.limits).all().item() is bool(float(score) > threshold)


def test_without_a_threshold_there_is_no_verdict(detector, pixels, tmp_path):
    bare = detector.with_settings(threshold=None)
    with pytest.raises(ValueError, match=r"no threshold.*--no-is-ood"):
        export_detector(bare, tmp_path / "detector.onnx")
    save_detector(bare, tmp_path / "bare")
    app(["export", str(tmp_path / "bare"), "--output", str(tmp_path / "new" / "detector.onnx"), "--no-is-ood"])
    found = run(tmp_path / "new" / "detector.onnx", pixels)
    assert list(found) == ["logits", "probabilities", "score"]


def test_the_detector_that_is_given_stays_as_it_is(detector, tmp_path):
    mine = random_detector(image_size=16).train()
    before = {name: value.clone() for name, value in mine.state_dict().items()}
    export_detector(mine, tmp_path / "detector.pt2", "torch", dtype="float16")
    assert mine.training and all(weight.requires_grad for weight in mine.parameters())
    assert all(torch.equal(value, before[name]) for name, value in mine.state_dict().items())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"format": "tflite"}, "`format` is 'tflite', but has to be one of onnx, torch"),
        ({"opset": 17}, "`opset` is 17, but has to be 18 or more and at most 23"),
        ({"opset": 24}, "`opset` is 24"),
        ({"dtype": "bfloat16"}, "`dtype` is 'bfloat16'"),
        ({"output": "folder"}, r"folder is a folder: name a file, such as .*folder.detector\.onnx"),
        (
            {"output": "detector.bin"},
            r"detector\.bin, but the name of .* has to end in \.onnx",
        ),
        ({"format": "torch", "output": "detector.onnx"}, r"has to end in \.pt2"),
    ],
)
def test_what_cannot_be_is_said_before_the_detector_is_read(options, says, tmp_path):
    (tmp_path / "folder").mkdir()
    output = tmp_path / options.pop("output", "detector.onnx")
    with pytest.raises(ValueError, match=says):
        export_detector(tmp_path / "no detector", output, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_weights_that_are_a_pickle_or_missing_are_refused(tmp_path):
    (tmp_path / "config.json").write_text((TINY_DETECTOR / "config.json").read_text())
    torch.save(load_detector(TINY_DETECTOR, "cpu").state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"cannot be read: .*model\.safetensors"):
        export_detector(tmp_path, tmp_path / "detector.onnx")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        export_detector(tmp_path / "none", tmp_path / "detector.onnx")


def test_missing_packages_are_named_with_the_way_to_get_them(monkeypatch, tmp_path):
    monkeypatch.setattr(export, "find_spec", lambda name: None if name.startswith("onnxs") else name)
    with pytest.raises(ValueError, match=r'there is no onnxscript: pip install "sona-pipeline\[export\]"'):
        export_detector(TINY_DETECTOR, tmp_path / "detector.onnx")


def test_too_many_weights_for_an_onnx_file_are_refused(monkeypatch, detector, tmp_path):
    monkeypatch.setattr(export, "ONNX_BYTES", 1_000_000)
    with pytest.raises(ValueError, match="2 GB at most: use the format 'torch', or float16"):
        export_detector(detector, tmp_path / "detector.onnx")


def test_networks_that_cannot_be_traced_and_files_that_say_other_things_are_refused(monkeypatch, tmp_path):
    detector = random_detector(image_size=16)
    forward = detector.network.forward
    monkeypatch.setattr(detector.network, "forward", lambda x: forward(x if x.sum().item() > 0 else -x))
    with pytest.raises(ValueError, match="the network resnet8 cannot be exported so"):
        export_detector(detector, tmp_path / "detector.onnx")
    monkeypatch.setattr(export, "_onnx_answers", lambda content, pixels: 4 * [np.full(3, np.nan, np.float32)[:, None]])
    with pytest.raises(ValueError, match=r"says other things than the detector .* and is not written"):
        export_detector(random_detector(image_size=16), tmp_path / "detector.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_a_full_disk_leaves_the_earlier_file(format, detector, tmp_path):
    path = tmp_path / f"detector{export.EXPORT_SUFFIXES[format]}"
    path.write_bytes(b"earlier")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match="the disk of"):
            export_detector(detector, path, format)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert [one.read_bytes() for one in tmp_path.iterdir()] == [b"earlier"]


def test_command_says_what_it_wrote_and_nothing_else_and_replaces_a_file(detector, tmp_path):
    path = tmp_path / "detector.onnx"
    path.write_bytes(b"earlier")
    words = [sys.executable, "-m", "sona_pipeline", "export", str(TINY_DETECTOR), "--output", str(path)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""
    assert re.fullmatch(r"1\.2 MB, within \S+ of the detector on random pixels: .*detector\.onnx\n", done.stdout)
    assert onnx.load(path).graph.input[0].name == "pixels"
    assert os.stat(path).st_mode & 0o044


def test_ctrl_c_leaves_nothing(tmp_path):
    slow = "import torch, time; torch.export.export = lambda *a, **k: (print('in', flush=True), time.sleep(60))"
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # also in the background
    code = f"{heard}\n{slow}\nfrom sona_pipeline.cli.app import main\nmain()"
    words = [sys.executable, "-c", code, "export", str(TINY_DETECTOR), "--output", str(tmp_path / "new" / "d.onnx")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "in\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        said, errors = process.communicate()
    assert process.returncode == 130 and "Stopped" in said and "Traceback" not in errors
    assert not list(tmp_path.rglob("*"))
