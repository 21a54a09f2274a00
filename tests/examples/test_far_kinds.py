"""Far-OOD images of many kinds, which choices of the CIFAR-10 benchmark are made by."""

from pathlib import Path

import numpy as np
import pytest
from benchmark_modules import modules_of

FOLDER = Path(__file__).parents[2] / "examples" / "benchmarks" / "cifar10"


@pytest.fixture(scope="module")
def bench():
    with modules_of(FOLDER) as modules:
        yield modules


@pytest.fixture(scope="module")
def kinds(bench):
    return bench.far_kinds.far_kinds()


def pixels(images) -> np.ndarray:
    return np.stack([np.asarray(images.image(i)) for i in range(len(images))]).astype(float)


def test_every_kind_has_as_many_images_of_the_same_shape(bench, kinds):
    assert set(kinds) == set(bench.far_kinds.KINDS)
    assert {pixels(images).shape for images in kinds.values()} == {(bench.far_kinds.COUNT, 32, 32, 3)}


def test_the_images_are_the_same_each_time(bench, kinds):
    for name, images in bench.far_kinds.far_kinds().items():
        np.testing.assert_array_equal(pixels(images), pixels(kinds[name]))


def test_no_image_is_plain_and_few_are_the_same(bench, kinds):
    for name, images in kinds.items():
        found = pixels(images)
        assert found.std((1, 2)).max(-1).min() > 1, name
        assert len(np.unique(found.reshape(len(found), -1), axis=0)) > 0.95 * len(found), name


def test_symbols_show_no_digits(bench):
    import unicodedata

    assert len(bench.far_kinds._known_symbols()) > 250
    assert not any(
        "DIGIT" in unicodedata.name(one) or "NUMBER" in unicodedata.name(one)
        for one in bench.far_kinds._known_symbols()
    )


def test_letters_fit_in_the_image(bench):
    """The widest letters leave the edge of the image to the paper, but for what turning and shifting cost."""
    draw = bench.far_kinds
    for seed in range(20):
        picture = np.asarray(
            draw._lettered("WWWW", draw._font_file("DejaVuSans-Bold"), np.random.default_rng(seed)), float
        )
        ink = np.abs(picture - picture[0, 0]).max(-1) > 40
        assert 0.05 < ink.mean() < 0.6
        assert ink[[0, -1]].mean() < 0.1 and ink[:, [0, -1]].mean() < 0.2


def test_a_missing_package_is_named(bench, monkeypatch):
    monkeypatch.setattr(bench.far_kinds, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="skimage is not here: pip install matplotlib scikit-image"):
        bench.far_kinds._folder("skimage")
