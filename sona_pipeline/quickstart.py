"""Job: the whole way on the bundled sample, from labelled images to detectors scored near and far."""

from __future__ import annotations

import io
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from sona_pipeline import __version__, figures, sample
from sona_pipeline.checkpoint import load_pipeline
from sona_pipeline.detector import Detector
from sona_pipeline.evaluate import Evaluation, evaluate_detector
from sona_pipeline.files import settle_settings, write_bytes, write_text
from sona_pipeline.generate import OutputSettings, generate_outliers
from sona_pipeline.outlier_set import open_outlier_set
from sona_pipeline.plan import GenerationSettings, plan_outliers
from sona_pipeline.progress import Track
from sona_pipeline.train import TrainingSettings, train_detector

PAIRS, MASK_SHEETS = 24, 3


def quickstart(output: str | Path, seed: int = 0) -> dict:
    """Outliers of the sample's ID images, a detector trained on both, a baseline without outliers, and their scores.

    Everything lands in `output`: `generated/` (outliers and reconstructions), `detector/`, `baseline/`,
    `results.json`, `energies.npz` and `pictures/`. A second run takes up what is there.

    Returns:
        The contents of `results.json`: metrics in percent, see `evaluate_detector`, and those of the baseline.

    Raises:
        ValueError: the folder was made with another seed or version.
    """
    output = Path(output)
    started = time.monotonic()
    settle_settings(output / "settings.json", {"version": __version__, "seed": seed})
    pipe = load_pipeline("tiny", device="cpu")

    images, validation = sample.id_images("train"), sample.id_images("validation")
    generation = GenerationSettings(ood_labels=sample.OOD_LABELS, seed=seed)
    generated = generate_outliers(images, pipe, output / "generated", generation, OutputSettings(batch_size=64))
    pairs = open_outlier_set(generated, images)
    images = pairs.images

    training = TrainingSettings(seed=seed)
    detectors = {
        "SONA": _once(
            output / "detector",
            lambda: train_detector(images, training, validation=validation, pairs=pairs, title="detector"),
        ),
        "cross-entropy": _once(
            output / "baseline", lambda: train_detector(images, training, validation=validation, title="baseline")
        ),
    }
    test, near, far = sample.id_images("test"), sample.near_ood(), sample.far_ood()
    evaluations = {}
    with Track("scores", len(detectors)) as track:
        for name, detector in detectors.items():
            evaluations[name] = evaluate_detector(detector, test, near, far)
            track.advance()

    _save_energies(output / "energies.npz", evaluations)
    draw(output / "pictures", pipe, images, pairs.outliers, generation, evaluations)
    counts = {"train": len(images), "validation": len(validation), "test": len(test)}
    results = {
        **evaluations["SONA"].results,
        "baseline": evaluations["cross-entropy"].results,
        "seed": seed,
        "version": __version__,
        "images": counts | {name: len(some) for name, some in {**near, **far}.items()},
        "seconds_of_this_run": round(time.monotonic() - started, 1),
    }
    write_text(output / "results.json", json.dumps(results, indent=2) + "\n")
    return results


def draw(
    folder: Path, pipe, images, outliers, settings: GenerationSettings, evaluations: dict[str, Evaluation]
) -> None:
    """Write `pairs.png`, `masks-*.png` and `scores.png`."""
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
            sheet = figures.masks_figure(
                pipe,
                images.image(item.index),
                labels,
                (settings.prompt.format(labels[0]), settings.prompt.format(labels[1])),
                item.stop_step,
                item.seed,
                num_inference_steps=settings.num_inference_steps,
            )
            figures.save_figure(sheet, folder / f"masks-{number}.png")
            track.advance()
    figures.save_figure(
        figures.scores_figure({name: evaluation.energies for name, evaluation in evaluations.items()}),
        folder / "scores.png",
    )


def _save_energies(path: Path, evaluations: dict[str, Evaluation]) -> None:
    """Write the energies as arrays named `<detector>/<data set>`."""
    arrays = {f"{who}/{name}": e for who, evaluation in evaluations.items() for name, e in evaluation.energies.items()}
    content = io.BytesIO()
    np.savez(content, **arrays)
    write_bytes(path, content.getvalue())


def _once(folder: Path, train: Callable[[], Detector]) -> Detector:
    """The detector saved in `folder`, or else a newly trained one, which is saved there."""
    if folder.exists():
        return Detector.from_pretrained(folder)
    detector = train()
    with tempfile.TemporaryDirectory(dir=folder.parent) as temporary:
        detector.save_pretrained(Path(temporary) / "detector")
        os.replace(Path(temporary) / "detector", folder)
    return detector
