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

import typer
from rich.filesize import decimal

from sona_pipeline import RECIPES, GenerationSettings, open_images, plan_outliers


def main(
    data: Annotated[str, typer.Option(help="ID images, as for `sona generate`.")],
    rows_per_second: Annotated[float, typer.Option(help="UNet rows a second of one device, as --dry-run prints.")],
    training_rate: Annotated[
        float, typer.Option(help="ID images a second of `sona train` with outliers on one device.")
    ],
    baseline_rate: Annotated[float, typer.Option(help="The same without outliers.")],
    image_root: Annotated[Path | None, typer.Option(help="Folder that paths of an image list start from.")] = None,
    split: Annotated[str, typer.Option(help="Split of a Hub data set.")] = "train",
    sample: Annotated[Path | None, typer.Option(help="Outlier set of some of the images, for the bytes.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Outlier sets, detectors and baselines.")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the full schedule.")] = 50,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the ID images.")] = RECIPES["imagenet200"].epochs,
    nodes: Annotated[
        list[int] | None, typer.Option(min=2, help="Nodes of eight GPUs; may be repeated (2 and 4 by default).")
    ] = None,
) -> None:
    """Count, divide, and print a table."""
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
    counts = {"1 GPU": 1, "8 GPUs": 8} | {f"{count} x 8 GPUs": 8 * count for count in nodes or (2, 4)}
    print(table(work, counts))


def unet_rows(images, steps: int, seed: int) -> int:
    """UNet rows that the outliers of all images take; the labels make no difference."""
    settings = GenerationSettings(ood_labels=("an OOD label",), num_inference_steps=steps, seed=seed)
    return plan_outliers(images, settings).unet_rows


def bytes_of_an_image(folder: Path) -> float:
    """Mean bytes of outlier and round trip together, in a set of image files."""
    sizes = [
        [path.stat().st_size for path in (folder / part).rglob("*.png")] for part in ("outliers", "reconstructions")
    ]
    return sum(mean(part) for part in sizes if part)


def table(work: dict[str, float], devices: dict[str, int]) -> str:
    """Times of the work, given in seconds of one device, by numbers of devices."""
    lines = [["", *devices], ["---"] * (1 + len(devices))]
    for name, seconds in {**work, "together": sum(work.values())}.items():
        lines.append([name, *(str(timedelta(seconds=round(seconds / count))) for count in devices.values())])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    typer.run(main)
