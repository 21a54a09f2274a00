"""Measures of what might give images away, on pictures of which they are known, and what takes it from them."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from benchmark_modules import modules_of
from diffusers.image_processor import VaeImageProcessor
from patch_autoencoder import PatchAutoencoder
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from sona_pipeline import ImageSet, TestSets

FOLDER = Path(__file__).parents[2] / "examples" / "benchmarks" / "cifar10"


@pytest.fixture(scope="module")
def shortcuts():
    with modules_of(FOLDER) as modules:
        yield modules.shortcuts


def picture(seed: int = 0) -> Image.Image:
    """Smooth colours of 32 px."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((32, 32), Image.Resampling.BICUBIC)


def pixels(*images: Image.Image) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images]) / 255


def test_measures_of_pictures_of_which_they_are_known(shortcuts):
    plain = np.zeros((3, 32, 32, 3))
    plain[1] = (0.5, 0.25, 0.25)
    plain[2] = (1, 0, 0.5)
    assert shortcuts.saturation(plain) == pytest.approx([0, 0.5, 1])
    assert shortcuts.clipped(plain) == pytest.approx([1, 0, 2 / 3])
    hsv = np.asarray(picture().convert("HSV"))[..., 1].mean() / 255
    assert shortcuts.saturation(pixels(picture()))[0] == pytest.approx(hsv, abs=0.005)
    checkers = np.indices((32, 32)).sum(axis=0) % 2
    rows = np.stack([checkers, np.linspace(0, 1, 32)[None].repeat(32, 0)])[..., None].repeat(3, 3).astype(float)
    assert shortcuts.sharpness(rows) == pytest.approx([2 / 0.5, 0], abs=1e-6)
    stairs = np.repeat(np.arange(4.0), 8)[:, None] + np.arange(32) / 100
    assert shortcuts.blocks((stairs + stairs.T)[None, ..., None].repeat(3, 3))[0] == pytest.approx(101, rel=0.01)


def test_jpeg_is_seen_in_its_blocks_and_goes_when_images_are_softened(shortcuts):
    noisy = [
        Image.fromarray(np.random.default_rng(k).integers(90, 160, (32, 32, 3), dtype=np.uint8)) for k in range(20)
    ]
    smooth = [image.resize((8, 8)).resize((32, 32), Image.Resampling.BILINEAR) for image in noisy]
    coded = [shortcuts.as_jpeg(image) for image in smooth]
    before, after = (shortcuts.blocks(pixels(*images)).mean() for images in (smooth, coded))
    assert after > 1.1 * before
    back = shortcuts.blocks(pixels(*map(shortcuts.softened, coded))).mean()
    assert back < after
    assert shortcuts.saturation(pixels(shortcuts.grey(picture())))[0] == 0


def autoencoder(components: int) -> SimpleNamespace:
    """What is used of a pipeline, with an autoencoder that keeps so many of 48 components."""
    vae = PatchAutoencoder(latent_channels=components)
    images = [picture(k) for k in range(20)]
    processor = VaeImageProcessor()
    vae.fit(processor.preprocess(images))
    return SimpleNamespace(vae=vae, preprocess_image=processor.preprocess)


def test_round_trip_loses_what_the_autoencoder_loses(shortcuts):
    source = np.asarray(picture(3))
    ratios = [
        peak_signal_noise_ratio(source, np.asarray(shortcuts.round_trip(autoencoder(n))(picture(3)))) for n in (48, 3)
    ]
    assert ratios[0] > 40 and ratios[1] < 35


def test_sets_are_told_apart_by_what_differs_and_by_nothing_else(shortcuts):
    def of(change) -> ImageSet:
        pictures = [change(picture(k)) for k in range(40)]
        return ImageSet(tuple(map(str, range(40))), (), (), pictures.__getitem__)

    part = shortcuts.describe_measures(of(lambda i: i), {"grey": of(shortcuts.grey)}, autoencoder(48)).rows.set_index(
        "set"
    )
    assert part.loc["ID", "saturation"].endswith("(50)")
    assert part.loc["grey", "saturation"] == "0.000 (100)"
    told = float(part.loc["grey", "blocks"].split("(")[1][:-1])
    assert told < 75


def test_every_image_of_every_set_is_changed(shortcuts):
    def one(shade: int) -> ImageSet:
        return ImageSet(("a",), (0,), ("cat",), lambda index: Image.new("RGB", (8, 8), (shade, 0, 0)))

    sets = shortcuts.changed(TestSets(one(10), {"near": one(20)}, {"far": one(30)}), shortcuts.grey)
    shades = [images.image(0).getpixel((0, 0)) for _, _, images in sets]
    assert [len(set(shade)) for shade in shades] == [1, 1, 1]
    assert len({shade[0] for shade in shades}) == 3


def test_aurocs_of_all_changes_stand_side_by_side(shortcuts):
    def found(value: float) -> pd.DataFrame:
        rows = [("ce", "near_ood", "mean", "auroc", value), ("ce", "id", "id", "accuracy", 1.0)]
        return pd.DataFrame(rows, columns=["method", "group", "set", "metric", "mean"])

    cells = shortcuts.describe_changes({"as they are": found(80.04), "grey": found(70.0)}).rows
    assert cells.values.tolist() == [["ce, near mean", 80.0, 70.0]]
