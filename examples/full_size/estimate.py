"""What a full-size run costs, as a Markdown table, from counts and from rates that you measured.

    sona generate ... --limit 256 --output sample        # time it: its rows a second are the rate of one device
    python examples/full_size/estimate.py --data LIST --image-root IMAGES --sample sample \\
        --rows-per-second RATE --training-rate RATE

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

from sona_pipeline import RECIPES, GenerationSettings, open_images
from sona_pipeline.plan import plan_outliers


def main(
    data: Annotated[str, typer.Option(help="ID images, as for `sona generate`.")],
    rows_per_second: Annotated[float, typer.Option(help="UNet rows a second of one device, as --dry-run prints.")],
    training_rate: Annotated[
        float, typer.Option(help="ID images a second of `sona train` with outliers on one device.")
    ],
    baseline_rate: Annotated[float | None, typer.Option(help="The same without outliers.")] = None,
    image_root: Annotated[Path | None, typer.Option(help="Folder that paths of an image list start from.")] = None,
    split: Annotated[str, typer.Option(help="Split of a Hub data set.")] = "train",
    sample: Annotated[Path | None, typer.Option(help="Outlier set of some of the images, for the bytes.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Outlier sets, detectors and baselines.")] = 5,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the full schedule.")] = 50,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the ID images.")] = RECIPES["imagenet200"].epochs,
    devices: Annotated[list[int], typer.Option(help="Numbers of devices; may be repeated.")] = [1, 8, 16, 32],  # noqa: B006
) -> None:
    """Count, divide, and print a table."""
    images = open_images(data, split=split, image_root=image_root)
    rows = [unet_rows(images, steps, seed) for seed in range(seeds)]
    work = {
        f"outliers ({sum(rows)} UNet rows)": sum(rows) / rows_per_second,
        f"SONA detectors ({seeds * epochs * len(images)} images)": seeds * epochs * len(images) / training_rate,
    }
    if baseline_rate:
        work[f"baselines ({seeds * epochs * len(images)} images)"] = seeds * epochs * len(images) / baseline_rate
    print(
        f"{len(images)} images, {rows[0]} UNet rows for seed 0, {rows[0] / len(images):.2f} an image; {seeds} seeds\n"
    )
    if sample:
        each = bytes_of_an_image(sample)
        print(f"{each:.0f} bytes an image, with its round trip: {decimal(round(each * len(images) * seeds))} in all\n")
    print(table(work, devices))


def unet_rows(images, steps: int, seed: int) -> int:
    """UNet rows that the outliers of all images take; the labels make no difference."""
    settings = GenerationSettings(ood_labels=("an OOD label",), num_inference_steps=steps, seed=seed)
    return plan_outliers(images, settings).unet_rows


def bytes_of_an_image(folder: Path) -> float:
    """Mean bytes of outlier and round trip together, of a set of image files."""
    made = {
        part: [path.stat().st_size for path in (folder / part).rglob("*.png")]
        for part in ("outliers", "reconstructions")
    }
    return sum(mean(sizes) for sizes in made.values() if sizes)


def table(work: dict[str, float], devices: list[int]) -> str:
    """Rows of work, in seconds of one device, and columns of numbers of devices."""

    def line(cells: list[str]) -> str:
        return f"| {' | '.join(cells)} |"

    def times(name: str, seconds: float) -> str:
        return line([name, *(str(timedelta(seconds=round(seconds / count))) for count in devices)])

    head = line(["work", *(f"{count} {'device' if count == 1 else 'devices'}" for count in devices)])
    rule = "|---" * (1 + len(devices)) + "|"
    return "\n".join([head, rule, *(times(*row) for row in work.items()), times("together", sum(work.values()))])


if __name__ == "__main__":
    typer.run(main)
