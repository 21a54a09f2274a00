"""`sona generate` by codec and size of what is kept, and the bytes of it."""

from pathlib import Path

import numpy as np
from commands import generate, sona_process, written
from PIL import Image
from sklearn.datasets import load_sample_images
from timing import SEED, Comparison, Ratio, rounds_in_turn

from sona_pipeline import ImageSet

IMAGES = 24
SIDE = 256
STEPS = 1
"""Few, so that what is written weighs as much beside the UNet as it ever does."""
REFERENCE = "png"
FORMS = {REFERENCE: ("png", 1), "webp": ("webp", 1), "jpeg": ("jpeg", 1), "png, half the size": ("png", 2)}
"""Codec, and the part of the size that is kept."""


def compare(rounds: int) -> list[Comparison]:
    """Pairs of an outlier and a round trip, of grey crops of two photos and at their size."""
    made: dict[str, Path] = {}
    with written(crops(IMAGES, SIDE)) as (sources, folder), sona_process() as sona:

        def run(name: str) -> None:
            codec, part = FORMS[name]
            kept = ("--codec", codec, "--save-size", str(SIDE // part))
            words = generate(sources, folder, "--size", str(SIDE), "--steps", str(STEPS), *kept)
            sona(words)
            made[name] = Path(words[-1])

        things = {name: lambda name=name: run(name) for name in FORMS}
        seconds = rounds_in_turn(things, rounds)
        sizes = {f"bytes of a pair, {name}": bytes_of(made[name]) // IMAGES for name in things}
    ratios = tuple(Ratio(name, REFERENCE) for name in things if name != REFERENCE)
    counts = {"images": IMAGES, "side": SIDE, "steps": STEPS} | sizes
    return [Comparison("embedded model", counts, IMAGES, "outliers", seconds, ratios)]


def crops(count: int, side: int) -> ImageSet:
    """Square grey crops at random places of the two photos that scikit-learn has."""
    photos = [Image.fromarray(pixels).convert("L") for pixels in load_sample_images().images]
    places = np.random.default_rng(SEED).random((count, 2))

    def crop(key: str) -> Image.Image:
        photo, (x, y) = photos[int(key) % 2], places[int(key)]
        left, top = int(x * (photo.width - side)), int(y * (photo.height - side))
        return photo.crop((left, top, left + side, top + side))

    keys = tuple(map(str, range(count)))
    return ImageSet(keys, tuple(k % 2 for k in range(count)), ("temple", "flower"), crop)


def bytes_of(folder: Path) -> int:
    """Of all pictures in an outlier set."""
    kinds = {".png", ".webp", ".jpg"}
    return sum(path.stat().st_size for path in folder.rglob("*") if path.suffix in kinds)
