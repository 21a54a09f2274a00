"""Job: the whole way on the bundled sample, from labelled images to detectors scored near and far."""

from __future__ import annotations

import json
import shlex
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.markup import escape
from rich.table import Table

from sona_pipeline import __version__
from sona_pipeline.common import figures
from sona_pipeline.common.files import read_json, settle_settings, write_text
from sona_pipeline.common.names import expanded
from sona_pipeline.common.progress import Track
from sona_pipeline.data.image_set import ImageSet
from sona_pipeline.evaluation.report import summary, table
from sona_pipeline.evaluation.score_table import TestSets
from sona_pipeline.fitting.job import fit_detector
from sona_pipeline.fitting.sources import FitSources
from sona_pipeline.generation.bundles import bundle_of, check_model
from sona_pipeline.generation.checkpoint import load_model
from sona_pipeline.generation.generate import settled_model
from sona_pipeline.generation.masks_figure import masks_figure
from sona_pipeline.generation.plan import plan_outliers
from sona_pipeline.generation.settings import DEFAULT_PRESET, PRESETS, GenerationSettings, ModelSettings
from sona_pipeline.pipelines.core import SONAMixin
from sona_pipeline.training.settings import RECIPES, Running

PAIRS, MASK_SHEETS = 24, 3


def quickstart(output: str | Path, seed: int = 0, model: str = "tiny") -> dict:
    """Outliers of bundled ID images, a detector trained on both, a baseline without outliers, and their scores.

    It is `fit_detector` on images that come with the package. Everything lands in `output`: `generated/` (outliers and
    reconstructions), `detector/`, `baseline/`, `results/` (see `evaluate_detectors`), `report.html`, `results.json`
    (metrics in percent of the detector, and of the baseline) and `pictures/`. A second run takes up what is there.

    Args:
        output: folder for all of it.
        seed: of outliers and detectors.
        model: "tiny", with the bundled sample; or "cifar", with images in colour that it draws itself, in `drawn/`.

    Returns:
        The contents of `results.json`: metrics as `results_of` gives them, and those of the baseline.

    Raises:
        ValueError: the folder was made with another seed, model or version, or no images go with the model.
    """
    check_model(model)
    output = expanded(output)
    started = time.monotonic()
    settle_settings(output / "settings.json", {"version": __version__, "seed": seed, "model": model})
    preset, bundle = PRESETS[DEFAULT_PRESET], bundle_of(model, output / "drawn")
    loading = ModelSettings(model, device="cpu", **preset.model)
    pipe = load_model(settled_model(loading, output / "generated"))

    generation = GenerationSettings(ood_labels=bundle.ood_labels, seed=seed, **preset.method)
    sets, running = TestSets(bundle.test, bundle.near, bundle.far), Running(cpu=True)
    training = replace(RECIPES["small"], seed=seed)
    sources = FitSources(bundle.train, bundle.validation, sets, generation, training, running=running)
    command = ["sona", "quickstart", "--output", str(output), "--seed", str(seed), "--model", model]
    pairs = fit_detector(sources, pipe, output, command=shlex.join(command)).pairs

    draw(output / "pictures", pipe, pairs.images, pairs.outliers, generation)
    detector, baseline = (run["results"]["energy"] for run in read_json(output / "results" / "results.json")["runs"])
    counts = {"train": len(pairs.images), "validation": len(bundle.validation)}
    counts |= {name: len(some) for _, name, some in sets}
    results = {
        **detector,
        "baseline": baseline,
        "seed": seed,
        "model": model,
        "version": __version__,
        "images": counts,
        "seconds_of_this_run": round(time.monotonic() - started, 1),
    }
    write_text(output / "results.json", json.dumps(results, indent=2) + "\n")
    return results


def outcome(output: Path, results: dict) -> list[str | Table]:
    """What came of it and where it lies, for the console."""
    place = escape(str(output))
    found = summary([("SONA", {"energy": results}), ("cross-entropy", {"energy": results["baseline"]})])
    return [
        table(found),
        f"\nReport:   {place}/report.html",
        f"Pictures: {place}/pictures   Outliers: {place}/generated/outliers",
        f"Tables:   {place}/results   Detector: {place}/detector",
    ]


def draw(folder: Path, pipe: SONAMixin, images: ImageSet, outliers: ImageSet, settings: GenerationSettings) -> None:
    """Write `pairs.png` and `masks-*.png`."""
    plan = plan_outliers(images, settings)
    by_step = sorted(plan, key=lambda item: item.stop_step)
    pairs = [by_step[k] for k in np.linspace(0, len(by_step) - 1, min(PAIRS, len(by_step))).astype(int)]
    sheet = figures.pairs_figure(
        [
            (
                images.image(item.index),
                outliers.image(item.index),
                f"{images.label_name(item.index)}\n→ {item.ood_label}, {item.stop_step}",
            )
            for item in pairs
        ]
    )
    figures.save_figure(sheet, folder / "pairs.png")
    late = [item for item in plan if item.stop_step > settings.num_inference_steps // 2]
    with Track("pictures", len(late[:MASK_SHEETS])) as track:
        for number, item in enumerate(late[:MASK_SHEETS], start=1):
            labels = images.label_name(item.index), item.ood_label
            sheet = masks_figure(
                pipe,
                images.image(item.index),
                labels,
                (settings.prompt.format(labels[0]), settings.prompt.format(labels[1])),
                item.stop_step,
                item.seed,
                num_inference_steps=settings.num_inference_steps,
                guidance_scale=settings.guidance_scale,
                mask_threshold=settings.mask_threshold,
            )
            figures.save_figure(sheet, folder / f"masks-{number}.png")
            track.advance()
