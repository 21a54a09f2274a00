"""The part of the command line that is about detectors: `sona train`, `sona score`, `sona evaluate`."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from sona_pipeline.cli.common import console, ends_explained

SETS, LEARNING, LOSSES, SETTINGS, RUN = "Images", "Training", "Losses", "Detector", "Run"


def train(
    data: Annotated[
        str,
        typer.Option(
            help="Labelled ID images: a folder with a sub-folder a class, parquet files, a Hub id (owner/name), or"
            " an image list of OpenOOD.",
            rich_help_panel=SETS,
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder for the detector.", rich_help_panel=RUN)],
    outliers: Annotated[
        Path | None,
        typer.Option(help="Outlier set of these images, made by `sona generate`.", rich_help_panel=SETS),
    ] = None,
    real_outliers: Annotated[
        str | None, typer.Option(help="Any other images to be exposed to, instead of OUTLIERS.", rich_help_panel=SETS)
    ] = None,
    validation: Annotated[
        str | None, typer.Option(help="Labelled ID images for threshold and best epoch.", rich_help_panel=SETS)
    ] = None,
    validation_share: Annotated[
        float,
        typer.Option(min=0, max=0.9, help="Without VALIDATION: share of DATA that is held out.", rich_help_panel=SETS),
    ] = 0.1,
    split: Annotated[str, typer.Option(help="Split of Hub data sets.", rich_help_panel=SETS)] = "train",
    validation_split: Annotated[
        str | None, typer.Option(help="Split of VALIDATION, if it is not SPLIT.", rich_help_panel=SETS)
    ] = None,
    image_root: Annotated[
        Path | None, typer.Option(help="Folder that paths of image lists start from.", rich_help_panel=SETS)
    ] = None,
    recipe: Annotated[
        str,
        typer.Option(
            help="'imagenet200' or 'fine-grained' (the paper's), or 'small' (32 px, no GPU); other options change it.",
            rich_help_panel=LEARNING,
        ),
    ] = "imagenet200",
    network: Annotated[
        str | None,
        typer.Option(
            help="'resnet18'; 'resnet8' or 'resnet20' for about 32 px; 'timm:NAME' or 'transformers:NAME'.",
            rich_help_panel=LEARNING,
        ),
    ] = None,
    pretrained: Annotated[
        bool | None,
        typer.Option(help="Fine-tune the weights of a timm or transformers network.", rich_help_panel=LEARNING),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Side of the images in pixels.", rich_help_panel=LEARNING)
    ] = None,
    augmentation: Annotated[
        str | None,
        typer.Option(help="'resized_crop', 'crop' (small images) or 'none'.", rich_help_panel=LEARNING),
    ] = None,
    flip: Annotated[bool | None, typer.Option(help="Mirror images at random.", rich_help_panel=LEARNING)] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the ID images.", rich_help_panel=LEARNING)] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="ID images a step, over all processes.", rich_help_panel=LEARNING)
    ] = None,
    accumulation: Annotated[
        int | None, typer.Option(help="Parts that a batch is computed in, to save memory.", rich_help_panel=LEARNING)
    ] = None,
    optimizer: Annotated[str | None, typer.Option(help="'sgd' or 'adamw'.", rich_help_panel=LEARNING)] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Highest learning rate.", rich_help_panel=LEARNING)
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Weight decay.", rich_help_panel=LEARNING)] = None,
    schedule: Annotated[str | None, typer.Option(help="'cosine' or 'one_cycle'.", rich_help_panel=LEARNING)] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="'oe' (outlier exposure), 'energy' (energy margins), 'mixoe', or 'vos' (needs no outliers).",
            rich_help_panel=LOSSES,
        ),
    ] = None,
    outlier_weight: Annotated[
        float | None, typer.Option(help="Weight beta of the method's loss.", rich_help_panel=LOSSES)
    ] = None,
    mi_weight: Annotated[
        float | None,
        typer.Option(
            help="Weight gamma of the mutual information between an image and its outlier (1 with OUTLIERS).",
            rich_help_panel=LOSSES,
        ),
    ] = None,
    min_strength: Annotated[
        float | None, typer.Option(help="Pass over outliers of less strength.", rich_help_panel=LOSSES)
    ] = None,
    score: Annotated[str | None, typer.Option(help="'energy', 'msp' or 'max_logit'.", rich_help_panel=SETTINGS)] = None,
    id_rate: Annotated[
        float | None,
        typer.Option(help="Share of ID validation images below the threshold.", rich_help_panel=SETTINGS),
    ] = None,
    keep: Annotated[
        str | None, typer.Option(help="'best' epoch by validation accuracy, or 'last'.", rich_help_panel=SETTINGS)
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Seed of weights, order, augmentation and VALIDATION_SHARE.", rich_help_panel=LEARNING),
    ] = None,
    mixed_precision: Annotated[str | None, typer.Option(help="'no', 'fp16' or 'bf16'.", rich_help_panel=RUN)] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that decode images.", rich_help_panel=RUN)] = 0,
    tracker: Annotated[
        str | None, typer.Option(help="'tensorboard', 'wandb', ... (of accelerate).", rich_help_panel=RUN)
    ] = None,
    cpu: Annotated[bool, typer.Option("--cpu", help="Use no GPU.", rich_help_panel=RUN)] = False,
) -> None:
    """Train a detector on ID images and their outliers; without outliers, by cross-entropy only.

    Started again after it was stopped, it goes on from the last finished epoch. Examples:

    sona train --data photos/train --outliers outliers/ --output detector/

    sona train --data photos/train --outliers outliers/ --recipe small --epochs 30 --output detector/

    accelerate launch --num_processes 8 -m sona_pipeline train --data photos/ --outliers outliers/ --output detector/
    """
    given = {name: value for name, value in locals().items() if value is not None}
    from accelerate import PartialState

    from sona_pipeline.data.images import hold_out, is_image_list, open_images
    from sona_pipeline.data.outlier_set import open_outlier_set
    from sona_pipeline.training.settings import RECIPES, Running, TrainingSettings
    from sona_pipeline.training.train import train_detector

    if recipe not in RECIPES:
        raise ValueError(f"--recipe is {recipe!r}, but has to be one of {sorted(RECIPES)}")
    if outliers and real_outliers:
        raise ValueError("--outliers and --real-outliers exclude each other: give one of them")
    changes = {field.name: given[field.name] for field in fields(TrainingSettings) if field.name in given}
    settings = replace(RECIPES[recipe], **changes)
    images = open_images(data, split=split, image_root=image_root)
    class_list = data if is_image_list(data) else None
    places = {"split": validation_split or split, "image_root": image_root, "class_list": class_list}
    held_out = open_images(validation, **places) if validation else None
    is_one_place = validation and is_same_place(data, validation)
    if is_one_place and (held_out.keys, held_out.labels) == (images.keys, images.labels):
        raise ValueError(
            f"--validation {validation} are the training images, on which a threshold means nothing: give others, or"
            " another --validation-split, or leave it out to have a share of DATA held out"
        )
    if held_out is None and validation_share > 0:
        images, held_out = hold_out(images, validation_share, settings.seed)
    if held_out is None and id_rate is None:
        settings = replace(settings, id_rate=None)
    exposed = open_images(real_outliers, split=split, image_root=image_root) if real_outliers else None
    if outliers:
        count, exposed = len(images), open_outlier_set(outliers, images)
        images = exposed.images
        if len(images) < count:
            console.print(f"[yellow]{count - len(images)} of {count} images have no outlier, and are left out[/]")
    running = Running(mixed_precision, workers, tracker, cpu)
    with ends_explained(output, settings.batch_size):
        detector = train_detector(
            images, settings, validation=held_out, outliers=exposed, output=output, running=running
        )
    console.quiet = not PartialState().is_main_process
    threshold = "no threshold" if detector.threshold is None else f"threshold {detector.threshold:.4g}"
    console.print(f"Detector of {len(images.classes)} classes, {threshold}: {escape(str(output))}", highlight=False)


def score(
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of images.")],
    detector: Annotated[str, typer.Option(help="Folder of the detector, or its id on the Hub.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object a line instead of a table.")] = False,
    cam: Annotated[Path | None, typer.Option(help="Folder for Grad-CAM pictures of what the score looks at.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at once.")] = 64,
    device: Annotated[str | None, typer.Option(help="'cpu', 'cuda', ... (an accelerator if there is one).")] = None,
) -> None:
    """Say of images what they show, how unfamiliar they are, and whether the detector has seen the like.

    An image that cannot be read gets a line with the reason. Examples:

    sona score --detector detector/ photo.jpg

    sona score --detector detector/ inbox/ --json > verdicts.jsonl
    """
    from sona_pipeline.detection.detector import load_detector
    from sona_pipeline.detection.scoring import files_of, verdicts

    files = files_of(images)
    model = load_detector(detector, device)
    table = Table("image", "label", "confidence", "energy", "verdict")
    for path, detection in verdicts(model, files, batch_size, cam):
        name = str(path).encode("utf-8", "backslashreplace").decode()
        if isinstance(detection, str):
            row = {"image": name, "error": detection}
            table.add_row(escape(name), "", "", "", f"[red]{escape(detection)}[/]")
        else:
            row = {"image": name, **asdict(detection)}
            verdict = {True: "[yellow]OOD[/]", False: "ID", None: "no threshold"}[detection.is_ood]
            numbers = f"{detection.confidence:.3f}", f"{detection.energy:.3f}"
            table.add_row(escape(name), escape(detection.label), *numbers, verdict)
        if as_json:
            print(json.dumps(row, ensure_ascii=False), flush=True)
    if not as_json:
        console.print(table)


def evaluate(
    detector: Annotated[
        list[str],
        typer.Option(
            help="Folder of a detector or its Hub id, as DIR or NAME=DIR; may be repeated. Those of one name are seeds"
            " of one method."
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder for tables, pictures and the scores of every image.")],
    id: Annotated[str | None, typer.Option(help="Labelled ID test images.", rich_help_panel=SETS)] = None,
    near: Annotated[
        list[str] | None, typer.Option(help="Near-OOD images as NAME=IMAGES; may be repeated.", rich_help_panel=SETS)
    ] = None,
    far: Annotated[
        list[str] | None, typer.Option(help="Far-OOD images as NAME=IMAGES; may be repeated.", rich_help_panel=SETS)
    ] = None,
    shifted: Annotated[
        list[str] | None,
        typer.Option(
            help="Covariate-shifted ID images as NAME=IMAGES, for full-spectrum results; may be repeated.",
            rich_help_panel=SETS,
        ),
    ] = None,
    benchmark: Annotated[
        str | None,
        typer.Option(
            help="All sets of OpenOOD's 'cifar10', 'cifar100', 'imagenet200' or 'imagenet', under ROOT.",
            rich_help_panel=SETS,
        ),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(help="OpenOOD's data folder, with benchmark_imglist in it.", rich_help_panel=SETS),
    ] = None,
    full_spectrum: Annotated[
        bool,
        typer.Option("--full-spectrum", help="Of BENCHMARK, also the covariate-shifted sets.", rich_help_panel=SETS),
    ] = False,
    split: Annotated[str, typer.Option(help="Split of Hub data sets.", rich_help_panel=SETS)] = "test",
    image_root: Annotated[
        Path | None, typer.Option(help="Folder that paths of image lists start from.", rich_help_panel=SETS)
    ] = None,
    score: Annotated[
        list[str] | None,
        typer.Option(
            help="'energy', 'msp', 'max_logit', a post-hoc score of pytorch-ood ('knn', 'vim', ...), or 'all'; may be"
            " repeated. The detector's own by default."
        ),
    ] = None,
    fit: Annotated[
        str | None,
        typer.Option(help="Labelled ID training images that post-hoc scores are fitted to.", rich_help_panel=SETS),
    ] = None,
    validation: Annotated[
        str | None,
        typer.Option(help="Labelled ID images for the post-hoc scores fitted to such.", rich_help_panel=SETS),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at once.", rich_help_panel=RUN)] = 64,
    workers: Annotated[int, typer.Option(min=0, help="Threads that decode images.", rich_help_panel=RUN)] = 2,
    device: Annotated[
        str | None, typer.Option(help="'cpu', 'cuda', ... (an accelerator if there is one).", rich_help_panel=RUN)
    ] = None,
) -> None:
    """Score detectors on ID and OOD test images: accuracy, AUROC, FPR@95 and AUPR, with tables and pictures.

    Scores are kept in OUTPUT, and only what is new is computed. Examples:

    sona evaluate --detector detector/ --id test/ --near birds=birds/ --far digits=digits/ --output results/

    sona evaluate --detector sona=run0/ --detector sona=run1/ --detector ce=base0/ --detector ce=base1/ --score all
    --fit train/ --benchmark cifar10 --root OpenOOD/data --output results/
    """
    from sona_pipeline.data.images import open_images
    from sona_pipeline.detection.scores import SCORES
    from sona_pipeline.evaluation.evaluate import evaluate_detectors
    from sona_pipeline.evaluation.openood import open_group, open_part
    from sona_pipeline.evaluation.report import table
    from sona_pipeline.evaluation.score_table import TestSets

    named_detectors = methods_of(detector)

    def named(texts: list[str] | None) -> dict:
        places = [name_and_place(text) for text in texts or []]
        if twice := [name for name, count in Counter(name for name, _ in places).items() if count > 1]:
            raise ValueError(f"{twice[0]!r} is the name of several test sets of one kind: give each its own name")
        return {name: open_images(place, split=split, image_root=image_root) for name, place in places}

    fit_images = open_images(fit, image_root=image_root) if fit else None
    held_out = open_images(validation, image_root=image_root) if validation else None
    if benchmark:
        if id or near or far or shifted or not root:
            raise ValueError("--benchmark brings its own test sets: give --root with it, and no --id, --near or --far")
        groups = ("near_ood", "far_ood", *(["covariate"] if full_spectrum else []))
        sets = TestSets(open_part(benchmark, root, "test"), *(open_group(benchmark, root, group) for group in groups))
        if fit_images is None and not set(score or ()) <= set(SCORES):
            fit_images = open_part(benchmark, root, "train")
            held_out = open_part(benchmark, root, "validation") if held_out is None else held_out
    elif id:
        known = open_images(id, split=split, image_root=image_root)
        sets = TestSets(known, named(near), named(far), named(shifted))
    else:
        raise ValueError("there are no test images: give --id with --near and --far, or --benchmark with --root")
    with ends_explained(output, batch_size):
        found = evaluate_detectors(
            named_detectors,
            sets,
            output,
            score,
            fit_images=fit_images,
            validation_images=held_out,
            batch_size=batch_size,
            workers=workers,
            device=device,
        )
    console.print(table(found))
    console.print(f"Tables, pictures and scores: {escape(str(output))}", highlight=False)


def is_same_place(one: str, other: str) -> bool:
    """Whether two places of images are one: the same path on disk, or the same Hub id."""
    return Path(one).resolve() == Path(other).resolve() if Path(one).exists() else one == other


def methods_of(detectors: list[str]) -> list[tuple[str, str]]:
    """Method and place of each DIR or NAME=DIR; a DIR without a name is a method by itself, named after its folder."""
    is_bare = [Path(text).exists() or "=" not in text for text in detectors]
    found = [
        (Path(text).resolve().name, text) if bare else name_and_place(text) for text, bare in zip(detectors, is_bare)
    ]
    count = Counter(name for name, _ in found)
    for (name, place), bare in zip(found, is_bare):
        if bare and count[name] > 1:
            raise ValueError(
                f"{place} would be named {name!r}, as another detector is: give NAME=DIR for each, with one name for"
                " seeds of one method"
            )
    return found


def name_and_place(text: str) -> tuple[str, str]:
    """NAME and PLACE of 'NAME=PLACE'."""
    name, sign, place = text.partition("=")
    if not (name and sign and place):
        raise ValueError(f"{text!r} is not of the form NAME=PLACE")
    return name, place
