"""Job: score images with a detector, and tell near- and far-OOD images from ID images by the scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sona_pipeline.data import ImageSet
from sona_pipeline.detector import Detector, predict
from sona_pipeline.metrics import ood_metrics


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a detector as nested dictionaries, and the energies they come from by data set name."""

    results: dict
    energies: dict[str, np.ndarray]


def evaluate_detector(
    detector: Detector, id_images: ImageSet, near: Mapping[str, ImageSet], far: Mapping[str, ImageSet]
) -> Evaluation:
    """ID accuracy, and the metrics of `ood_metrics` for every near- and far-OOD set and their means, in percent.

    The results have the keys `id_accuracy`, `id_flagged` (share of ID images above the threshold), `near_ood` and
    `far_ood`; the last two map data set names, and `mean`, to `auroc`, `fpr95`, `aupr_in` and `aupr_out`.

    Raises:
        ValueError: the ID images have classes that the detector does not know, or a set is named `id` or `mean`.
    """
    if unknown := [name for name in id_images.classes if name not in detector.classes]:
        raise ValueError(f"the ID images have classes {unknown}, which the detector does not know: {detector.classes}")
    sets = {**near, **far}
    if len(sets) < len(near) + len(far) or {"id", "mean"} & set(sets):
        raise ValueError(f"names of OOD sets have to differ, and not be 'id' or 'mean': {[*near, *far]}")
    number = [detector.classes.index(name) for name in id_images.classes]
    truth = np.array([number[label] for label in id_images.labels])
    known = predict(detector, id_images)
    energies = {"id": known.energies} | {name: predict(detector, images).energies for name, images in sets.items()}
    results = {"id_accuracy": 100 * float((known.labels == truth).mean())}
    if detector.threshold is not None:
        results["id_flagged"] = 100 * float((known.energies > detector.threshold).mean())
    for group, members in (("near_ood", near), ("far_ood", far)):
        rows = {name: ood_metrics(known.energies, energies[name]) for name in members}
        if rows:
            rows["mean"] = {
                key: float(np.mean([row[key] for row in rows.values()])) for key in next(iter(rows.values()))
            }
        results[group] = rows
    return Evaluation(results, energies)
