"""Detectors on the bundled sample: with SONA's outliers, with real ones, with none; every score, several seeds.

    python examples/benchmarks/detectors.py --output detectors

Half an hour to an hour on two cores, as `run.json` says afterwards; stopped, it goes on where it was. Tables, pictures
and the settings land in `OUTPUT/results`; those of the README are in `examples/benchmarks/results/detectors`.

All detectors have the recipe "small" and the same ID images. Real outliers are as many images of the labels ("bag",
"sandal") that SONA's outliers are given. Validation images are used for threshold and best epoch only; nothing was
chosen by test images.
"""

import json
import platform
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import cyclopts
from cyclopts.types import PositiveInt

from sona_pipeline import (
    RECIPES,
    GenerationSettings,
    OutputSettings,
    TestSets,
    evaluate_detectors,
    generate_outliers,
    load_pipeline,
    open_outlier_set,
    sample,
    train_detector,
)

METHODS = {
    "cross-entropy": (None, {}),
    "VOS": (None, {"method": "vos"}),
    "OE, real outliers": ("real", {}),
    "MixOE, real outliers": ("real", {"method": "mixoe"}),
    "OE, SONA": ("sona", {"mi_weight": 0.0}),
    "OE + MI, SONA": ("sona", {"mi_weight": 1.0}),
    "energy margins, SONA": ("sona", {"method": "energy", "mi_weight": 0.0}),
}
"""What each is trained on, and its settings beside those of the recipe."""


def main(*, output: Path = Path("detectors"), seeds: PositiveInt = 3) -> None:
    """Generate, train and evaluate; the tables say mean and standard deviation over the seeds.

    Args:
        output: Folder for outliers, detectors and results.
        seeds: How many seeds, from 0 on; at least 1.
    """
    started = time.monotonic()
    images, validation = sample.id_images("train"), sample.id_images("validation")
    detectors = []
    for seed in range(seeds):
        generation = GenerationSettings(ood_labels=sample.OOD_LABELS, seed=seed)
        made = generate_outliers(
            images, load_pipeline("tiny"), output / f"outliers-{seed}", generation, OutputSettings(batch_size=64)
        )
        outliers = {None: None, "real": sample.real_outliers(), "sona": open_outlier_set(made, images)}
        for method, (kind, changes) in METHODS.items():
            folder = output / "detectors" / f"{method}-{seed}"
            settings = replace(RECIPES["small"], outlier_augmentation="none", seed=seed, **changes)
            title = f"{method}, seed {seed}"
            train_detector(images, settings, validation=validation, outliers=outliers[kind], output=folder, title=title)
            detectors.append((method, str(folder)))

    sets = TestSets(sample.id_images("test"), sample.near_ood(), sample.far_ood())
    evaluate_detectors(
        sorted(detectors, key=lambda pair: list(METHODS).index(pair[0])),
        sets,
        output / "results",
        ["all"],
        fit_images=images,
        validation_images=validation,
    )
    run = {
        "seeds": seeds,
        "images": {"train": len(images), "validation": len(validation)} | {name: len(some) for _, name, some in sets},
        "versions": {name: version(name) for name in ("sona-pipeline", "torch", "diffusers", "pytorch-ood")},
        "python": platform.python_version(),
        "minutes_of_this_run": round((time.monotonic() - started) / 60, 1),
    }
    (output / "results" / "run.json").write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    cyclopts.App(default_command=main, version_flags=())()
