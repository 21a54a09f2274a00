"""The command about the whole way: `sona fit`."""

from __future__ import annotations

import shlex
import sys

from cyclopts import App
from rich.markup import escape

from sona_pipeline.cli.options import add_command
from sona_pipeline.common.configuration import Given
from sona_pipeline.common.endings import ends_explained
from sona_pipeline.common.messages import say, warning
from sona_pipeline.detection.settings import ClassifierSettings
from sona_pipeline.fitting import settings


def add_to(app: App) -> None:
    """Add the command to the command line."""
    add_command(app, fit, settings.FIT)


def fit(given: Given) -> None:
    """From a folder of labelled images to a detector, a plain classifier to compare it with, and a report on both.

    Says first what it will do, and how long that takes. Started again, it goes on where it stopped. Examples:

    * `sona fit --data photos/ --output run/ --dry-run`
    * `sona fit --data photos/ --near birds=birds/ --far digits=digits/ --output run/`
    * `sona fit --data photos/ --near birds=birds/ --classifier google/vit-base-patch16-224 --output run/`
    """
    job, source = given.of(settings.FitJob), given.of(settings.FitImages)
    models, classifier = given.of(settings.FitModels), given.of(ClassifierSettings)
    from sona_pipeline.fitting.job import fit_detector
    from sona_pipeline.fitting.plan import plan_fit
    from sona_pipeline.fitting.sources import open_fit
    from sona_pipeline.fitting.verdict import headline, sentences
    from sona_pipeline.generation.checkpoint import load_model
    from sona_pipeline.generation.generate import check_run, settled_model

    sources, loading, check_classes, warnings = open_fit(job, source, models, classifier)
    say(*map(warning, warnings))
    pipe = load_model(settled_model(loading, job.output / "generated"))
    check_run(sources.train, pipe, sources.generation, sources.writing)
    plan = plan_fit(sources, pipe, job.output, check_classes)
    say(plan.table())
    plan.check(job.most_hours)
    if job.dry_run:
        return
    with ends_explained(job.output, sources.training.batch_size):
        command = shlex.join(["sona", *sys.argv[1:]])
        found = fit_detector(sources, pipe, job.output, check_classes=check_classes, command=command)
    say("", *map(escape, [headline(found), *sentences(found)]), f"Report: {escape(str(job.output / 'report.html'))}")
