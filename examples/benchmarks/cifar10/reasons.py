"""What detectors make of validation images that says why a post-hoc score is good or bad with them."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch
from outcome import Part

from sona_pipeline import Detector, ImageSet, TestSets, load_detector, with_spread

REASONS_NOTE = """Means over the images, ± standard deviation over the seeds; all are validation images. "length" is the
norm of the penultimate features. "sum / largest" is their sum by the sum of the largest 15 %, of which SCALE takes the
exponential as a factor, as ASH does with 10 %. "KL" is the score kl_matching of images of that confidence. "gram 0" is
the share of images that have the lowest score there is with gram, no deviation at all."""
SCALE_SHARE = 0.15
BATCH = 250


def describe_reasons(
    detectors: Mapping[str, Sequence[Path]], sets: TestSets, scores: Mapping[str, Sequence[pd.DataFrame]]
) -> Part:
    """A row a method and set.

    Args:
        detectors: folders by method, one a seed.
        sets: that the detectors were scored on.
        scores: of these detectors on these sets, `kl_matching` and `gram` among them.
    """
    found = []
    for method, folders in detectors.items():
        for folder, table in zip(folders, scores[method]):
            for _, name, images in sets:
                values = _features(load_detector(folder), images) | _scores(table[table["set"] == name])
                found.append({"detector": method, "images": name} | values)
    grouped = pd.DataFrame(found).groupby(["detector", "images"], sort=False)
    means, spread = grouped.mean(), grouped.std()
    rows = means.apply(lambda column: [with_spread(*pair) for pair in zip(column, spread[column.name])])
    return Part("Reasons", REASONS_NOTE, rows.reset_index(), "reasons.csv")


@torch.no_grad()
def _features(detector: Detector, images: ImageSet) -> dict[str, float]:
    features = torch.cat([detector.features(pixels) for pixels in _batches(detector.eval(), images)])
    largest = features.topk(round(SCALE_SHARE * features.shape[1]), dim=1).values.sum(dim=1)
    return {
        "length": features.norm(dim=1).mean().item(),
        "sum / largest": (features.sum(dim=1) / largest).mean().item(),
    }


def _batches(detector: Detector, images: ImageSet) -> Iterator[torch.Tensor]:
    for start in range(0, len(images), BATCH):
        yield detector.pixels(images.image(i) for i in range(start, min(start + BATCH, len(images))))


def _scores(table: pd.DataFrame) -> dict[str, float]:
    sure, unsure = table["confidence"] > 0.9, table["confidence"].between(0.3, 0.5)
    return {
        "confidence, %": 100 * table["confidence"].mean(),
        "KL, above 90 %": table["kl_matching"][sure].mean(),
        "KL, 30 to 50 %": table["kl_matching"][unsure].mean(),
        "gram 0, %": 100 * (table["gram"] <= 0).mean(),
    }
