"""The form that pictures are kept in, read again by Pillow, and what ID images undergo beside it."""

import io

import numpy as np
import pytest
from PIL import Image, features
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resize

from sona_pipeline.common.files import png
from sona_pipeline.data.codecs import KeptForm, settled_quality
from sona_pipeline.data.imaging import with_short_side
from sona_pipeline.data.settings import CODECS


def noise(side: int, mode: str = "RGB", seed: int = 0, width: int | None = None) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, width or side, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("codec", CODECS)
def test_a_file_is_of_the_format_that_its_suffix_says(codec, mode):
    found = opened(KeptForm(32, 32, codec).encoded(noise(32, mode)))
    assert Image.registered_extensions()[f".{CODECS[codec].suffix}"] == found.format
    assert found.size == (32, 32)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("codec", ["png", "webp"])
def test_codecs_without_a_quality_lose_nothing(codec, mode):
    image = noise(48, mode)
    found = opened(KeptForm(48, 48, codec).encoded(image))
    assert (np.asarray(found.convert(mode)) == np.asarray(image)).all()


def test_jpeg_has_the_quality_that_is_asked_for():
    """The quantization tables in the file are libjpeg's for that quality."""
    for quality in (60, 90):
        expected = io.BytesIO()
        noise(32).save(expected, "JPEG", quality=quality)
        found = opened(KeptForm(32, 32, "jpeg", quality).encoded(noise(32)))
        assert found.quantization == opened(expected.getvalue()).quantization


def test_png_of_the_models_size_is_what_0_1_0_wrote():
    assert KeptForm(32, 32).encoded(noise(32)) == png(noise(32))


def test_pictures_are_scaled_by_lanczos_filter_with_antialiasing():
    """Against the filter by hand: sinc(x) sinc(x / 3), three times as wide where a third is left."""
    image, side, ratio = noise(48, "L"), 16, 3
    kept = np.asarray(opened(KeptForm(48, side).encoded(image)), dtype=float)
    places = (np.arange(side)[:, None] + 0.5) * ratio - 0.5
    distance = (np.arange(48)[None] - places) / ratio
    weights = np.sinc(distance) * np.sinc(distance / 3) * (abs(distance) < 3)
    weights /= weights.sum(axis=1, keepdims=True)
    expected = (weights @ np.asarray(image, dtype=float) @ weights.T).clip(0, 255)
    assert abs(kept - expected).max() <= 1.5  # Pillow rounds after each direction


def test_stripes_too_fine_for_the_size_become_grey():
    stripes = Image.fromarray(np.tile(np.uint8([[0, 255]]), (64, 32)))
    kept = np.asarray(opened(KeptForm(64, 16).encoded(stripes)), dtype=float)
    assert abs(kept[:, 2:-2] - 127.5).max() < 3


def test_an_id_image_undergoes_the_scaling_of_its_outlier():
    """A square one becomes the very pixels that the files of an outlier with the same pixels hold."""
    image = noise(100)
    for form in (KeptForm(64, 24), KeptForm(64, 24, "webp"), KeptForm(64, 24, "jpeg", 80), KeptForm(64, 64)):
        in_the_model = with_short_side(image, form.model_size)
        stored = opened(form.encoded(in_the_model)).convert("RGB")
        assert (np.asarray(form.undergone(image)) == np.asarray(stored)).all(), form


def test_a_whole_id_image_keeps_its_proportions():
    form = KeptForm(64, 24)
    assert form.undergone(noise(50, width=75)).size == (36, 24)
    assert form.undergone(noise(30, "L")).mode == "RGB"
    assert form.undergone(Image.new("RGB", (3, 3000))).size == (24, 24 * 16)


def test_an_id_image_of_the_size_of_the_model_is_left_as_it_is():
    assert (np.asarray(KeptForm(32, 32).undergone(noise(32))) == np.asarray(noise(32))).all()


def test_filter_of_id_images_is_that_of_torchvision_by_the_same_name():
    expected = resize(noise(60, width=90), [20, 30], InterpolationMode.LANCZOS)
    assert abs(np.asarray(with_short_side(noise(60, width=90), 20), int) - np.asarray(expected, int)).max() <= 1


def test_quality_is_that_of_jpeg_only():
    assert [settled_quality(name, None) for name in CODECS] == [None, None, 90]
    assert settled_quality("jpeg", 75) == 75
    for name in ("png", "webp"):
        with pytest.raises(ValueError, match=f"the quality is 80, but '{name}' loses nothing and has none"):
            settled_quality(name, 80)


def test_a_codec_that_pillow_lacks_is_refused(monkeypatch):
    monkeypatch.setattr(features, "check", lambda name: name != "webp")
    with pytest.raises(ValueError, match="the codec is 'webp', which this Pillow lacks: install one that has it"):
        settled_quality("webp", None)
    assert settled_quality("png", None) is None
