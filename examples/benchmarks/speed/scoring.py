"""Images a second that a detector gives an energy score, from pixels in memory and from image files."""

import tempfile
from pathlib import Path

import torch
from timing import Comparison, Ratio, rounds_in_turn

from sona_pipeline import TINY_DETECTOR, energy, load_detector, sample

IMAGES = 1024
BATCH_SIZE = 64


def compare(rounds: int) -> list[Comparison]:
    """The embedded detector on test images of the sample: as one tensor, and as PNG files."""
    detector, images = load_detector(TINY_DETECTOR, "cpu"), sample.id_images("test").take(range(IMAGES))
    pictures = [images.image(i) for i in range(len(images))]
    pixels = detector.pixels(pictures)

    @torch.no_grad()
    def from_memory() -> torch.Tensor:
        return torch.cat([energy(detector(some), detector.temperature) for some in pixels.split(BATCH_SIZE)])

    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i}.png" for i in range(len(pictures))]
        for path, picture in zip(paths, pictures):
            picture.save(path)

        def from_files() -> list[float]:
            return [said.energy for said in detector.stream(paths, BATCH_SIZE)]

        seconds = rounds_in_turn({"pixels in memory": from_memory, "image files": from_files}, rounds)
    counts = {"images": len(images), "batch size": BATCH_SIZE, "side": detector.image_size}
    ratio = Ratio("image files", "pixels in memory")
    return [Comparison("embedded detector", counts, len(images), "images", seconds, (ratio,))]
