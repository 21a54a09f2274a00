"""The probe for traces: it finds those of a codec and of scaling, and none where there are none."""

import io

import numpy as np
import pytest
from PIL import Image
from scipy.fft import dctn
from scipy.stats import norm

from sona_pipeline.data import sample
from sona_pipeline.generation.shortcuts import _coefficients, probe_auroc, told_apart, traces


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    images = sample.far_ood()["photos"]
    order = np.random.default_rng(0).permutation(len(images))
    return [images.image(int(i)) for i in order]


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=quality)
    return Image.open(content)


def auroc(pairs) -> float:
    return told_apart("ones", "others", len(pairs), pairs.__getitem__).auroc


@pytest.mark.parametrize("quality", [75, 90])
def test_a_codec_is_found(photos, quality):
    assert auroc([(jpeg(photo, quality), photo) for photo in photos[:200]]) > 95


def test_scaling_down_and_up_again_is_found(photos):
    softer = [photo.resize((28, 28), Image.Resampling.LANCZOS).resize((32, 32)) for photo in photos[:200]]
    assert auroc(list(zip(softer, photos))) > 90


def test_images_of_one_kind_are_not_told_apart(photos):
    """Other photos, in PNG or all in JPEG; and other clothes."""
    clothes = [sample.id_images("train").image(i) for i in range(400)]
    for ones in (photos[:400], clothes, [jpeg(photo, 75) for photo in photos[:400]]):
        found = told_apart("ones", "others", 200, list(zip(ones[::2], ones[1::2])).__getitem__)
        assert abs(found.auroc - 50) < found.chance


def test_the_same_images_are_chance_to_the_last_digit(photos):
    assert auroc([(photo, photo) for photo in photos[:60]]) == 50


def test_the_probe_has_the_auroc_that_is_known_of_two_normal_distributions():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(500, 2, 10))
    features[:, 0, 3] += 1.5
    assert probe_auroc(features) == pytest.approx(100 * norm.cdf(1.5 / np.sqrt(2)), abs=3)
    assert probe_auroc(features) == probe_auroc(features)


def test_chance_is_as_wide_as_it_is_said():
    found = np.array([probe_auroc(np.random.default_rng(k).normal(size=(60, 2, 180))) for k in range(30)])
    chance = told_apart("ones", "others", 60, lambda k: (Image.new("L", (16, 16), k),) * 2).chance
    assert abs(found.mean() - 50) < 4
    assert 0.6 < 2 * found.std() / chance < 1.5


def test_blocks_are_transformed_as_scipy_does_it():
    channel = np.random.default_rng(0).uniform(0, 255, (24, 16)).astype(np.float32)
    expected = [
        dctn(channel[y : y + 8, x : x + 8], norm="ortho").ravel() for y in range(0, 24, 8) for x in range(0, 16, 8)
    ]
    assert np.allclose(_coefficients(channel), expected, atol=1e-3)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize("side", [8, 9, 31, 224, 512])
def test_every_image_has_finite_statistics_on_the_grid_of_its_codec(side, mode):
    for image in (Image.new(mode, (side, side)), Image.effect_noise((side, side), 60).convert(mode)):
        assert traces(image).shape == traces(Image.new("RGB", (64, 64))).shape
        assert np.isfinite(traces(image)).all()
    stripes = np.zeros((512, 512), np.uint8)
    stripes[:, ::8] = 255  # a step at the beginning of every block
    grid = traces(Image.fromarray(stripes))[63 + 63 + 28 :][:8]
    assert set(np.argsort(grid)[-2:]) == {0, 7}


def test_few_pairs_and_those_that_cannot_be_read_are_no_figure(photos):
    few = told_apart("ones", "others", 49, None)
    assert (few.pairs, few.auroc) == (49, None)

    def pair(k):
        if k % 3 == 0:
            raise OSError("torn")
        return photos[k], photos[k + 1]

    assert told_apart("ones", "others", 60, pair).auroc is None
    assert told_apart("ones", "others", 90, pair).pairs == 60
