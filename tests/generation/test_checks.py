import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from sona_pipeline.detection.detector import Detector
from sona_pipeline.generation.checks import (
    CHECKS,
    Bound,
    Made,
    bounds_of,
    contrast,
    fingerprints,
    latent_distance,
    load_classifier,
    run_checks,
    saturation,
)


def made(outliers=None, sources=None, outlier_latents=None, source_latents=None) -> Made:
    """A batch of which only some parts matter."""
    nothing = torch.zeros(1, 3, 8, 8)
    parts = (sources, outliers, source_latents, outlier_latents)
    return Made(*(nothing if part is None else part for part in parts))


def flat(*values: float) -> torch.Tensor:
    """Images of one value each, `[B, 3, 8, 8]`."""
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 3, 8, 8).clone()


def half_and_half(left: float = 0.0, right: float = 1.0) -> torch.Tensor:
    image = flat(left)
    image[..., 4:] = right
    return image


def test_latent_distance_is_0_for_equal_latents_and_the_root_mean_square_of_the_difference():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 3, 4, 5, 6)).astype(np.float32)
    found = latent_distance(made(source_latents=torch.tensor(one), outlier_latents=torch.tensor(other)))
    expected = [math.sqrt(np.mean((a.astype(float) - b) ** 2)) for a, b in zip(one, other)]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)
    assert (
        latent_distance(made(source_latents=torch.tensor(one), outlier_latents=torch.tensor(one))).tolist() == [0] * 3
    )
    assert latent_distance(made(source_latents=flat(1, 0), outlier_latents=flat(-2, 0.5))).tolist() == [3, 0.5]


def test_latent_distance_of_unrelated_latents_is_about_the_root_of_two():
    one, other = torch.randn(2, 1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    distance = latent_distance(made(source_latents=one, outlier_latents=other)).item()
    assert distance == pytest.approx(math.sqrt(2), abs=0.03)


def test_latent_distance_takes_half_precision_without_overflow():
    far = made(source_latents=flat(0).half(), outlier_latents=flat(300).half())
    assert latent_distance(far).tolist() == [300]


def test_contrast_of_flat_and_of_black_and_white_images():
    images = torch.cat([flat(0, 0.7, 1), half_and_half(), half_and_half(0.25, 0.75)])
    assert contrast(made(images)).tolist() == pytest.approx([0, 0, 0, 0.5, 0.25], abs=1e-6)


def test_contrast_is_that_of_the_channel_with_most_and_not_that_between_channels():
    coloured = flat(0)
    coloured[:, 0], coloured[:, 1] = 1, 0.5
    red_edge = flat(0.5)
    red_edge[:, 0, :, 4:] = 0.7
    assert contrast(made(torch.cat([coloured, red_edge]))).tolist() == pytest.approx([0, 0.1], abs=1e-6)
    rng = np.random.default_rng(0)
    image = rng.random((2, 3, 8, 8)).astype(np.float32)
    assert contrast(made(torch.tensor(image))).numpy() == pytest.approx(image.reshape(2, 3, 64).std(axis=2).max(axis=1))


def test_saturation_counts_black_and_white_beyond_the_sources():
    grey, black, white = flat(0.5), flat(0), flat(1)
    half = half_and_half(0, 0.5)
    assert saturation(made(outliers=black, sources=grey)).tolist() == [1]
    assert saturation(made(outliers=white, sources=grey)).tolist() == [1]
    assert saturation(made(outliers=half_and_half(), sources=half)).tolist() == [0.5]
    assert saturation(made(outliers=grey, sources=half)).tolist() == [0]
    assert saturation(made(outliers=half, sources=half)).tolist() == [0]


@pytest.mark.parametrize(("value", "share"), [(0, 1), (0.4, 1), (0.6, 0), (1, 0), (254, 0), (254.4, 0), (254.6, 1)])
def test_values_that_round_to_black_or_white_are_saturated(value, share):
    assert saturation(made(outliers=flat(value / 255), sources=flat(0.5))).tolist() == [share]


def hash_worked_out_slowly(image: np.ndarray) -> str:
    """The difference hash of an image `[C, H, W]`, cell by cell."""
    height, width = image.shape[1:]
    grey = image.astype(float).mean(axis=0)
    cells = []
    for row in range(9):
        rows = slice(math.floor(row * height / 9), math.ceil((row + 1) * height / 9))
        cells.append([grey[rows, math.floor(c * width / 9) : math.ceil((c + 1) * width / 9)].mean() for c in range(9)])
    bits = "".join("1" if right - left > 2 / 255 else "0" for row in cells for left, right in pairwise(row))
    bits += "".join("1" if under - over > 2 / 255 else "0" for pair in pairwise(cells) for over, under in zip(*pair))
    return format(int(bits, 2), "036x")


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 32, 32), (3, 72, 64), (3, 45, 31), (1, 9, 9)])
def test_fingerprints_are_difference_hashes(shape):
    images = np.random.default_rng(0).random((20, *shape)).astype(np.float32)
    assert fingerprints(torch.tensor(images)) == [hash_worked_out_slowly(image) for image in images]


def test_fingerprints_of_pictures_that_can_be_told_by_hand():
    rising = torch.linspace(0, 1, 72).expand(1, 3, 72, 72)
    bright_top_right = torch.zeros(1, 3, 72, 72)
    bright_top_right[:, :, :8, 64:] = 1
    pictures = torch.cat([rising, rising.mT, 1 - rising, torch.zeros(1, 3, 72, 72), bright_top_right])
    none, half = "0" * 36, "f" * 18
    assert fingerprints(pictures) == [half + "0" * 18, "0" * 18 + half, none, none, "01" + "0" * 34]


def blocks(count: int) -> np.ndarray:
    """Pictures of 9 x 9 blocks with clear steps between them, `[N, 3, 72, 72]` in 0.1 .. 0.8."""
    levels = np.random.default_rng(1).integers(0, 8, (count, 1, 9, 9)) / 10 + 0.1
    return levels.repeat(3, axis=1).repeat(8, axis=2).repeat(8, axis=3).astype(np.float32)


def test_small_noise_and_another_brightness_leave_the_fingerprint():
    pictures = blocks(50)
    noise = np.random.default_rng(2).uniform(-3 / 255, 3 / 255, pictures.shape).astype(np.float32)
    plain = fingerprints(torch.tensor(pictures))
    assert fingerprints(torch.tensor(pictures + noise)) == plain
    assert fingerprints(torch.tensor(pictures + 20 / 255)) == plain
    assert fingerprints(torch.tensor((pictures * 255).round() / 255)) == plain


def test_different_pictures_have_different_fingerprints():
    assert len(set(fingerprints(torch.tensor(blocks(500))))) == 500


def test_all_checks_are_run_on_each_outlier_by_itself():
    generator = torch.Generator().manual_seed(0)
    pixels, latents = (torch.rand(2, 4, 3, 16, 16, generator=generator) for _ in range(2))
    together = run_checks(Made(*pixels, *latents))
    assert together == [run_checks(Made(*(part[k : k + 1] for part in (*pixels, *latents))))[0] for k in range(4)]
    assert list(together[0]) == [*CHECKS, "fingerprint"]
    one = run_checks(made(half_and_half(), flat(0.5), flat(1 / 3), flat(0)))[0]
    assert one == {"latent_distance": 0.33333, "contrast": 0.5, "saturation": 1, "fingerprint": "18" * 9 + "0" * 18}


@pytest.mark.parametrize(
    ("text", "bound"),
    [
        ("latent_distance<0.3", ("latent_distance", "<", 0.3)),
        (" contrast > 1e-3 ", ("contrast", ">", 0.001)),
        ("saturation>.5", ("saturation", ">", 0.5)),
        ("source_confidence<-1", ("source_confidence", "<", -1)),
        ("contrast<+2E+2", ("contrast", "<", 200)),
    ],
)
def test_bounds_are_read(text, bound):
    assert Bound.parse(text) == Bound(*bound)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "contrast",
        "contrast<",
        "<0.3",
        "0.3<contrast",
        "contrast=0.3",
        "contrast<=0.3",
        "contrast<0.3<0.4",
        "contrast<0.3, saturation>0.5",
        "contrast<nan",
        "contrast<inf",
        "contrast<-inf",
        "contrast<1e999",
        "contrast<1e",
        "contrast<0x1",
        "contrast<1_0",
        "contrast<--1",
        "Contrast<0.3",
        "fingerprint<3",
        "sharpness<0.3",
        "__import__('os')<0.3",
        "contrast<__import__('os').getpid()",
        "contrast.__class__<0.3",
    ],
)
def test_what_is_no_bound_is_refused(text):
    with pytest.raises(ValueError, match="is no bound: give CHECK<NUMBER or CHECK>NUMBER, with a check of"):
        Bound.parse(text)


@given(
    check=st.sampled_from([*CHECKS, "source_confidence"]),
    sign=st.sampled_from("<>"),
    limit=st.floats(allow_nan=False, allow_infinity=False),
    space=st.text(" \t", max_size=2),
)
def test_every_bound_that_can_be_written_is_read_back(check, sign, limit, space):
    assert Bound.parse(f"{space}{check}{space}{sign}{space}{limit!r}{space}") == Bound(check, sign, limit)


def test_a_bound_gives_its_reason_only_where_it_holds():
    row = {"contrast": 0.123456, "saturation": 0.5}
    assert Bound.parse("contrast<0.2").reason(row) == "contrast 0.1235 < 0.2"
    assert Bound.parse("contrast<0.1").reason(row) is None
    assert Bound.parse("contrast>0.1").reason(row) == "contrast 0.1235 > 0.1"
    assert Bound.parse("saturation<0.5").reason(row) is None
    assert Bound.parse("saturation>0.5").reason(row) is None


def noise_images(count: int) -> list[Image.Image]:
    values = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return [Image.fromarray(value) for value in values]


def values_of(images: list[Image.Image]) -> torch.Tensor:
    """Pixels in [0, 1], `[B, 3, H, W]`."""
    return torch.tensor(np.stack([np.asarray(image) for image in images]) / 255).permute(0, 3, 1, 2).float()


def softmax(logits: torch.Tensor) -> np.ndarray:
    powers = np.exp(logits.detach().double().numpy())
    return powers / powers.sum(axis=1, keepdims=True)


CLASS_NAMES = {"n01440764": ("tench", "Tinca tinca"), "sea_lion": ("sea lion",), "Cats": ("Cats",)}
"""Classes by a synonym, with an underscore, and in another number and case than the classifiers have them."""


def test_a_detectors_confidence_is_the_probability_of_the_sources_class(tmp_path):
    torch.manual_seed(0)
    detector = Detector(["cat", "tinca tinca", "dog", "sea lion"], image_size=32)
    with torch.no_grad():
        detector(values_of(noise_images(8)))  # so that the running averages are not those of a new network
    detector.save_pretrained(tmp_path)
    detector.eval()
    images = noise_images(4)
    shares = softmax(detector(values_of(images)))
    checks = load_classifier(str(tmp_path), CLASS_NAMES)
    found = checks(images, ["n01440764", "sea_lion", "Cats", "n01440764"])
    expected = [shares[0, 1], shares[1, 3], shares[2, 0], shares[3, 1]]
    assert of_sources(found) == pytest.approx(expected, rel=1e-4)
    assert [row["confidence"] for row in found] == pytest.approx(shares.max(axis=1).tolist(), rel=1e-4)
    assert all("id_quantile" not in row for row in found)


def of_sources(found: list[dict]) -> list[float]:
    return [row["source_confidence"] for row in found]


def test_a_calibrated_detector_says_which_share_of_id_images_scores_lower(tmp_path):
    torch.manual_seed(0)
    detector = Detector(["cat", "dog"], image_size=32).eval()
    images = noise_images(40)
    with torch.no_grad():
        scores = detector.ood_score(detector(values_of(images)))
    detector.calibrated(scores).save_pretrained(tmp_path)
    names = {"cat": ("cat",)}
    found = load_classifier(str(tmp_path), names, asked=["id_quantile"])(images, ["cat"] * 40)
    lower = [(scores < score).float().mean().item() for score in scores]
    assert [row["id_quantile"] for row in found] == pytest.approx(lower, abs=0.03)


def test_a_quantile_is_asked_of_calibrated_detectors_only(vit, tmp_path):
    vit("cat", "dog")
    Detector(["cat", "dog"]).save_pretrained(tmp_path / "detector")
    for place, reason in ((tmp_path, "is another classifier"), (tmp_path / "detector", "train it with an --id-rate")):
        with pytest.raises(ValueError, match=f"`id_quantile` needs a .*{reason}"):
            load_classifier(str(place), {"cat": ("cat",)}, asked=["id_quantile"])


def test_filters_of_other_methods_have_names():
    rows = [{"source_confidence": c, "confidence": c, "id_quantile": c} for c in (0.2, 0.4, 0.6, 0.97, 0.995)]

    def kept(*texts):
        return [row["confidence"] for row in rows if not any(b.reason(row) for b in bounds_of(texts))]

    assert kept("rodeo") == [0.2, 0.4]
    assert kept("bad-ood") == [0.4]
    assert kept("GCOS") == [0.97]
    assert kept("rodeo", "source_confidence<0.3") == [0.4]
    with pytest.raises(ValueError, match=r"'oe' is no bound: .* or a filter of \('rodeo', 'bad-ood', 'gcos'\)"):
        bounds_of(["oe"])


@pytest.fixture
def vit(tmp_path):
    """Factory of random ViT classifiers with certain labels, in `tmp_path`."""

    def make(*labels: str) -> ViTForImageClassification:
        torch.manual_seed(0)
        config = ViTConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=32,
            patch_size=16,
            id2label=dict(enumerate(labels)),
            label2id={label: k for k, label in enumerate(labels)},
        )
        model = ViTForImageClassification(config)
        torch.nn.init.normal_(model.classifier.weight, std=1.0)
        model.save_pretrained(tmp_path)
        ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
        return model.eval()

    return make


@pytest.mark.parametrize("count", [3, 7])
def test_a_transformers_classifier_is_asked_for_the_sources_class(vit, tmp_path, count):
    model = vit(*["tench, Tinca tinca", "sea lion", "cat", "dog", "bee", "fly", "ant"][:count])
    images = noise_images(6)
    shares = softmax(model(2 * values_of(images) - 1).logits)
    classes = ["n01440764", "sea_lion", "Cats"] * 2
    found = load_classifier(str(tmp_path), CLASS_NAMES)(images, classes)
    assert of_sources(found) == pytest.approx([shares[k, k % 3] for k in range(6)], rel=1e-3)


def test_a_transformers_classifier_takes_grey_images(vit, tmp_path):
    model = vit("cat", "dog", "bee")
    grey = [image.convert("L") for image in noise_images(2)]
    shares = softmax(model(2 * values_of([image.convert("RGB") for image in grey]) - 1).logits)
    found = load_classifier(str(tmp_path), {"bee": ("bee",)})(grey, ["bee", "bee"])
    assert of_sources(found) == pytest.approx(shares[:, 2], rel=1e-3)


def test_a_classifier_that_does_not_know_a_class_is_refused(vit, tmp_path):
    Detector(["cat", "dog"]).save_pretrained(tmp_path / "detector")
    vit("cat", "dog")
    names = {"cat": ("cat",), "n01440764": ("tench", "Tinca tinca")}
    for name in (tmp_path, tmp_path / "detector"):
        with pytest.raises(ValueError, match=r"does not know the classes \['n01440764'\]"):
            load_classifier(str(name), names)


def renamed(folder, **changes) -> None:
    """Write other names into a classifier's config.json; None takes an entry away."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def test_a_name_stands_for_all_classes_of_that_name(vit, tmp_path):
    model = vit("crane", "maillot", "maillot, tank suit", "dog", "cran")
    renamed(tmp_path, id2label=dict(enumerate(["crane", "maillot", "maillot, tank suit", "dog", "crane"])))
    images = noise_images(4)
    shares = softmax(model(2 * values_of(images) - 1).logits)
    names = {"n02012849": ("crane",), "suit": ("maillot", "tank suit"), "maillot": ("maillot",), "dog": ("dog",)}
    found = load_classifier(str(tmp_path), names)(images, list(names))
    expected = [shares[0, 0] + shares[0, 4], shares[1, 2], shares[2, 1], shares[3, 3]]
    assert of_sources(found) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("label2id", [None, {"dog": 0, "cat": 1, "bee": 2}, {"x": 0}, {"LABEL_0": 0}])
def test_only_id2label_says_what_a_classifiers_classes_are(label2id, vit, tmp_path):
    model = vit("cat", "dog", "bee")
    renamed(tmp_path, label2id=label2id)
    images = noise_images(2)
    shares = softmax(model(2 * values_of(images) - 1).logits)
    names = {"dog": ("dog",), "bee": ("bee",)}
    found = load_classifier(str(tmp_path), names)(images, ["dog", "bee"])
    assert of_sources(found) == pytest.approx([shares[0, 1], shares[1, 2]], rel=1e-3)


def test_a_classifier_without_names_is_refused(vit, tmp_path):
    vit("LABEL_0", "LABEL_1", "LABEL_2")
    renamed(tmp_path, label2id={"cat": 0, "dog": 1, "bee": 2})
    with pytest.raises(ValueError, match="has no names for its 3 classes: write them into `id2label`"):
        load_classifier(str(tmp_path), {"cat": ("cat",)})


def test_names_of_a_classifier_in_another_normal_form(vit, tmp_path):
    vit("Cafe\u0301", "bar", "pub")
    assert load_classifier(str(tmp_path), {"Caf\u00e9": ("Caf\u00e9",)})(noise_images(1), ["Caf\u00e9"])
