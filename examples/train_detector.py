"""Train a detector on labelled images and their outliers, and look at what it says of images that it has not seen.

    sona generate --data photos/train --output outliers
    python examples/train_detector.py --data photos/train --outliers outliers --test photos/test --near birds

Without options it runs on the bundled sample, in about ten minutes on two cores.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import cyclopts

from sona_pipeline import (
    RECIPES,
    GenerationSettings,
    TestSets,
    generate_outliers,
    hold_out,
    load_pipeline,
    open_images,
    open_outlier_set,
    results_of,
    sample,
    score_images,
    train_detector,
)


def main(
    *,
    data: Path = sample.SAMPLE / "train.parquet",
    outliers: Path | None = None,
    test: Path = sample.SAMPLE / "test.parquet",
    near: Path = sample.SAMPLE / "near.parquet",
    recipe: Annotated[str, cyclopts.Parameter(choices=RECIPES)] = "small",
    epochs: int | None = None,
    output: Path = Path("train-detector"),
) -> None:
    """Outliers, training, a verdict on ten images, and the metrics of the energy score.

    Args:
        data: Labelled ID images.
        outliers: Their outlier set (made here by default).
        test: Labelled ID test images.
        near: Near-OOD test images.
        recipe: Settings of the training, by their name.
        epochs: Passes over the images (the recipe's by default).
        output: Folder for outliers and detector.
    """
    images, validation = hold_out(open_images(data), 0.1, seed=0)

    if outliers is None:
        outliers = output / "outliers"
        settings = GenerationSettings(ood_labels=sample.OOD_LABELS)
        generate_outliers(images, load_pipeline("tiny"), outliers, settings)
    pairs = open_outlier_set(outliers, images)

    settings = RECIPES[recipe]
    if epochs:
        settings = replace(settings, epochs=epochs)
    detector = train_detector(pairs.images, settings, validation=validation, outliers=pairs, output=output / "detector")

    known, unknown = open_images(test), open_images(near)
    for name, images in (("ID", known), ("near-OOD", unknown)):
        for said in detector(images.image(i) for i in range(5)):
            verdict = "never seen the like" if said.is_ood else "known"
            print(f"{name:9} image: {said.label:12} energy {said.energy:6.2f}  {verdict}")

    scores = score_images(detector, TestSets(known, near={"near": unknown}))
    results = results_of(scores, "energy", detector.threshold)
    metrics = results["near_ood"]["near"]
    print(f"ID accuracy {results['id_accuracy']:.1f} %, ID images flagged {results['id_flagged']:.1f} %")
    print(f"near-OOD AUROC {metrics['auroc']:.1f} %, FPR@95 {metrics['fpr95']:.1f} %")


if __name__ == "__main__":
    cyclopts.App(default_command=main, version_flags=())()
