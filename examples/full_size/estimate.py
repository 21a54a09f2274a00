"""What a full-size run costs, as a Markdown table, from counts and from rates that you measured.

    sona generate --data LIST --image-root IMAGES --output sample --dry-run     # prints rows a second of this device
    sona generate --data LIST --image-root IMAGES --output sample --limit 256   # pictures, for their bytes
    python examples/full_size/estimate.py --data LIST --image-root IMAGES --sample sample \\
        --rows-per-second ROWS --training-rate IMAGES --baseline-rate IMAGES

Images and UNet rows are counted by planning the whole set, as `sona generate` does; bytes are those of the files of a
set that was made of some of the images. Time is work divided by rate and number of devices: it takes for granted that
all devices are alike and that reading and writing keep up with them.
"""

from datetime import timedelta
from pathlib import Path
from statistics import mean
from typing import Annotated

import cyclopts
from cyclopts.types import PositiveInt
from cyclopts.validators import Number
from rich.filesize import decimal

from sona_pipeline import RECIPES, GenerationSettings, open_images, plan_outliers


def main(
    *,
    data: str,
    rows_per_second: float,
    training_rate: float,
    baseline_rate: float,
    image_root: Path | None = None,
    split: str = "train",
    sample: Path | None = None,
    seeds: PositiveInt = 5,
    steps: PositiveInt = 50,
    epochs: PositiveInt = RECIPES["imagenet200"].epochs,
    nodes: Annotated[tuple[int, ...], cyclopts.Parameter(validator=Number(gte=2), negative=())] = (2, 4),
) -> None:
    """Count, divide, and print a table.

    Args:
        data: ID images, as for `sona generate`.
        rows_per_second: UNet rows a second of one device, as `--dry-run` prints.
        training_rate: ID images a second of `sona train` with outliers on one device.
        baseline_rate: The same without outliers.
        image_root: Folder that paths of an image list start from.
        split: Split of a Hub data set.
        sample: Outlier set of some of the images, for the bytes.
        seeds: Outlier sets, detectors and baselines; at least 1.
        steps: Steps of the full schedule, at least 1.
        epochs: Passes over the ID images, at least 1.
        nodes: Nodes of eight GPUs, at least 2; may be repeated.
    """
    images = open_images(data, split=split, image_root=image_root)
    rows = [unet_rows(images, steps, seed) for seed in range(seeds)]
    seen = seeds * epochs * len(images)
    work = {
        f"{seeds} outlier sets, {sum(rows)} UNet rows": sum(rows) / rows_per_second,
        f"{seeds} SONA detectors, {seen} images": seen / training_rate,
        f"{seeds} baselines, {seen} images": seen / baseline_rate,
    }
    print(f"{len(images)} images; {rows[0]} UNet rows with seed 0, {rows[0] / len(images):.2f} an image\n")
    if sample:
        each = bytes_of_an_image(sample)
        print(f"{each:.0f} bytes an image, with its round trip: {decimal(round(each * len(images) * seeds))} in all\n")
    counts = {"1 GPU": 1, "8 GPUs": 8} | {f"{count} x 8 GPUs": 8 * count for count in nodes}
    print(table(work, counts))


def unet_rows(images, steps: int, seed: int) -> int:
    """UNet rows that the outliers of all images take; the labels make no difference."""
    settings = GenerationSettings(ood_labels=("an OOD label",), num_inference_steps=steps, seed=seed)
    return plan_outliers(images, settings).unet_rows


def bytes_of_an_image(folder: Path) -> float:
    """Mean bytes of outlier and round trip together, in a set of image files."""
    kinds = {".png", ".webp", ".jpg"}
    sizes = [
        [path.stat().st_size for path in (folder / part).rglob("*") if path.suffix in kinds]
        for part in ("outliers", "reconstructions")
    ]
    return sum(mean(part) for part in sizes if part)


def table(work: dict[str, float], devices: dict[str, int]) -> str:
    """Times of the work, given in seconds of one device, by numbers of devices."""
    lines = [["", *devices], ["---"] * (1 + len(devices))]
    for name, seconds in {**work, "together": sum(work.values())}.items():
        lines.append([name, *(str(timedelta(seconds=round(seconds / count))) for count in devices.values())])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    cyclopts.App(default_command=main, version_flags=())()
