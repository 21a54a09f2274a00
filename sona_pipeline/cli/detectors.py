"""Commands about detectors: `sona train`, `sona score`, `sona calibrate`, `sona evaluate`, `sona export`."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

from cyclopts import App
from rich.markup import escape

from sona_pipeline.cli.options import add_command
from sona_pipeline.common.configuration import Given
from sona_pipeline.common.endings import ends_explained, stopped_explained
from sona_pipeline.common.messages import console, has_all_letters, say, warning
from sona_pipeline.data.settings import ImageSource
from sona_pipeline.detection.settings import (
    AskSettings,
    CalibrationSettings,
    ClassifierSettings,
    ExportSettings,
    wanted_rate,
)
from sona_pipeline.evaluation.settings import ScoringSettings, TestImages
from sona_pipeline.training import settings as training

TRAIN = {
    "Job": training.TrainingJob,
    "Images": training.TrainingImages,
    "Classifier": ClassifierSettings,
    "Training": training.TrainingSettings,
    "Device": training.Running,
}
CALIBRATE = {"Calibration": CalibrationSettings, "Images": ImageSource}
EVALUATE = {"Scoring": ScoringSettings, "Images": TestImages}


def add_to(app: App) -> None:
    """Add the commands to the command line."""
    add_command(app, train, TRAIN, training.settings_in)
    add_command(app, score, {"Options": AskSettings})
    add_command(app, calibrate, CALIBRATE)
    add_command(app, evaluate, EVALUATE)
    add_command(app, export, {"Options": ExportSettings})


def train(given: Given) -> None:
    """Train a detector on ID images and their outliers; without outliers, by cross-entropy only.

    Started again after it was stopped, it goes on from the last finished epoch. Examples:

    * `sona train --data photos/train --outliers outliers/ --output detector/`
    * `sona train --data photos/train --outliers outliers/ --recipe small --epochs 30 --output detector/`
    * `sona train --data photos/train --outliers outliers/ --classifier google/vit-base-patch16-224 --output kept/`
    * `sona train --config detector/training.json --data photos/train --outliers outliers/ --output again/`
    * `accelerate launch --num_processes 8 -m sona_pipeline train --data photos/ --outliers set/ --output detector/`
    """
    job, source, running = given.of(training.TrainingJob), given.of(training.TrainingImages), given.of(training.Running)
    asked = given.of(ClassifierSettings)
    recipe = "finetune" if asked.classifier and "recipe" not in given else job.recipe
    settings = given.of(training.TrainingSettings, training.RECIPES[recipe])
    from sona_pipeline.common.processes import process_state
    from sona_pipeline.detection.classifiers import load_classifier
    from sona_pipeline.training.devices import check_running
    from sona_pipeline.training.sources import open_training_sets
    from sona_pipeline.training.train import train_detector

    training.check_settings(settings)
    check_running(running, job.output)
    console.quiet = not process_state(running.cpu).is_main_process
    classifier = load_classifier(asked) if asked.classifier else None
    sets, left_out = open_training_sets(source, settings.seed)
    if left_out:
        say(warning(f"{left_out} of {left_out + len(sets.images)} images have no outlier, and are left out"))
    if sets.validation is None and "id_rate" not in given:
        settings = replace(settings, id_rate=None)
    with ends_explained(job.output, settings.batch_size):
        detector = train_detector(
            sets.images,
            settings,
            classifier=classifier,
            validation=sets.validation,
            outliers=sets.outliers,
            output=job.output,
            running=running,
        )
    threshold = "no threshold" if detector.threshold is None else f"threshold {detector.threshold:.4g}"
    kept = "" if detector.neighbours is None else f", neighbours kept: {len(detector.neighbours)} of {len(sets.images)}"
    say(f"Detector of {len(detector.classes)} classes, {threshold}{kept}: {escape(str(job.output))}")


def score(given: Given) -> None:
    """Say of images what they show, how unfamiliar they are, and whether the detector has seen the like.

    An image that cannot be read gets a line with the reason; it is an error if none can be read. Examples:

    * `sona score --detector detector/ photo.jpg`
    * `sona score --detector detector/ inbox/ --json > verdicts.jsonl`
    * `sona score --detector detector/ inbox/ --summary`
    """
    asked = given.of(AskSettings)
    from sona_pipeline.detection.detector import load_detector
    from sona_pipeline.detection.scoring import as_row, check_some_read, files_of, table_of, verdicts
    from sona_pipeline.detection.summary import check_calibrated, summary_of

    files, found = files_of(asked.images), []
    detector = load_detector(asked.detector, asked.device)
    if asked.summary:
        check_calibrated(detector)
    for verdict in verdicts(detector, files, asked.batch_size, asked.cam):
        found.append(verdict)
        if asked.json:
            print(json.dumps(as_row(verdict), ensure_ascii=not has_all_letters(sys.stdout)), flush=True)
    if not asked.json and not asked.summary:
        say(table_of(found, detector.score))
    check_some_read(found)
    if asked.summary:
        summary = summary_of(found, detector)
        if asked.json:
            print(json.dumps({"summary": summary.as_row()}, ensure_ascii=not has_all_letters(sys.stdout)))
        else:
            say(summary.table(), *map(escape, summary.findings()))


def calibrate(given: Given) -> None:
    """Give a detector a new threshold by ID images of today, labelled or not, without training.

    Only the settings of the detector are written. Examples:

    * `sona calibrate detector/ --data photos/new`
    * `sona calibrate detector/ --data photos/new --false-alarms 0.01 --per-class --output calibrated/`
    """
    asked, source = given.of(CalibrationSettings), given.of(ImageSource)
    id_rate = wanted_rate(asked)
    from sona_pipeline.data.images import open_source
    from sona_pipeline.detection.calibration import calibrate_detector

    found = calibrate_detector(
        asked.detector,
        open_source(source, labelled=False),
        id_rate,
        per_class=asked.per_class,
        output=asked.output,
        batch_size=asked.batch_size,
        device=asked.device,
    )
    say(*found.in_words())


def evaluate(given: Given) -> None:
    """Score detectors on ID and OOD test images: accuracy, AUROC, FPR@95 and AUPR, with tables and pictures.

    Scores are kept in OUTPUT, and only what is new is computed. Examples:

    * `sona evaluate --detector detector/ --id test/ --near birds=birds/ --far digits=digits/ --output results/`
    * `sona evaluate --detector sona=run0/ --detector ce=base0/ --baseline ce --benchmark cifar10 --root D --output r/`
    """
    scoring, source = given.of(ScoringSettings), given.of(TestImages)
    from sona_pipeline.evaluation.evaluate import evaluate_detectors
    from sona_pipeline.evaluation.report import table
    from sona_pipeline.evaluation.score_names import score_names
    from sona_pipeline.evaluation.sources import methods_of, open_test_images

    detectors = methods_of(scoring.detector)
    opened = open_test_images(source, score_names(scoring.score), scoring.search)
    with ends_explained(scoring.output, scoring.batch_size):
        found = evaluate_detectors(
            detectors,
            opened.sets,
            scoring.output,
            scoring.score or None,
            baseline=scoring.baseline,
            leaderboard=opened.leaderboard,
            fit_images=opened.fit,
            validation_images=opened.validation,
            search_images=opened.search,
            batch_size=scoring.batch_size,
            workers=scoring.workers,
            device=scoring.device,
        )
    say(table(found), f"Tables, pictures and scores: {escape(str(scoring.output))}")


def export(given: Given) -> None:
    """Write a detector to one file of ONNX or torch: pixels in; logits, probabilities, score and `is_ood` out.

    Example: `sona export detector/ --output detector.onnx`
    """
    asked = given.of(ExportSettings)
    from sona_pipeline.detection.export import export_detector

    with stopped_explained():
        made = export_detector(**vars(asked))
    near = f"within {made.difference:.1g} of the detector on random pixels"
    say(f"{made.size / 1e6:.1f} MB, {near}: {escape(str(made.path))}")
