"""Filters of other methods (`sona generate --reject`), by which outliers of a set that is there are not trained on."""

from collections.abc import Callable
from dataclasses import replace

import torch

from sona_pipeline import Detector, OutlierPairs

BATCH = 250
Filter = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""A classifier's probabilities of the source's class and of the likeliest class, to whether an outlier stays."""
FILTERS: dict[str, Filter] = {
    "rodeo": lambda of_source, of_likeliest: of_source <= 0.5,
    "bad-ood": lambda of_source, of_likeliest: (of_likeliest >= 0.3) & (of_likeliest <= 0.5),
}


@torch.no_grad()
def filtered(pairs: OutlierPairs, stays: Filter, classifier: Detector) -> OutlierPairs:
    """The pairs, with strength 0 for outliers that a filter leaves out; their sources stay ID images."""
    labels, strengths = torch.tensor(pairs.images.labels), []
    for start in range(0, len(pairs.outliers), BATCH):
        places = range(start, min(start + BATCH, len(pairs.outliers)))
        shares = classifier(classifier.pixels(pairs.outliers.image(k) for k in places)).softmax(dim=1)
        of_source = shares.gather(1, labels[list(places), None])[:, 0]
        kept = stays(of_source, shares.amax(dim=1)).tolist()
        strengths += [pairs.strengths[k] * is_kept for k, is_kept in zip(places, kept)]
    return replace(pairs, strengths=tuple(strengths))
