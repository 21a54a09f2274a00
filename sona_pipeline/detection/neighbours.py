"""Job: give a trained detector features of training images, which the score energy+knn compares with."""

from __future__ import annotations

from itertools import islice

import numpy as np
import torch
from torch.nn.functional import normalize

from sona_pipeline.common.progress import Track
from sona_pipeline.data.image_set import ImageSet, readable
from sona_pipeline.detection.detector import UNCALIBRATED, Detector
from sona_pipeline.detection.scores.of_features import K, knn
from sona_pipeline.detection.scores.of_logits import energy

KEPT_BYTES = 20_000_000
"""Of the features in float16 that a detector keeps at most."""
HELD_OUT = 10
"""Without validation images, one training image in so many is held out for the standard deviations."""


def keep_neighbours(
    detector: Detector,
    images: ImageSet,
    validation: ImageSet | None = None,
    *,
    seed: int = 0,
    limit: int = KEPT_BYTES,
    batch_size: int = 256,
    shown: bool = True,
) -> Detector:
    """The same network with the score energy+knn, the neighbours for it, and no threshold.

    Args:
        detector: trained.
        images: what it was trained on. If their features have more than `limit` bytes, some are drawn at random, and
            the neighbour that counts is not the 50th but as much nearer as there are fewer.
        validation: ID images that it was not trained on, by which energy and distance are standardized. Without them, a
            tenth of `images` is held out for that, and not kept.
        seed: of the draws.
        limit: bytes of the features that are kept.
        batch_size: images at once.
        shown: whether there is a progress bar.

    Raises:
        ValueError: no training image can be read, or fewer than two to standardize by.
        OSError: the disk fails.
    """
    order = np.random.default_rng(seed).permutation(len(images)).tolist()
    if validation is None:
        held_out = max(2, len(images) // HELD_OUT)
        order, validation = order[held_out:], images.take(sorted(order[:held_out]))
    room = max(1, limit // (2 * detector.network.head.in_features))
    kept = images.take(sorted(order[:room]))
    with Track("neighbours", len(kept) + len(validation), shown=shown) as track:
        _, found = _passed(detector, kept, batch_size, track)
        logits, features = _passed(detector, validation, batch_size, track)
    if not len(found) or len(logits) < 2:
        raise ValueError(
            f"energy+knn needs a training image that can be read and two others to standardize by, but there are"
            f" {len(found)} and {len(logits)}: give more images"
        )
    new, k = detector.with_settings(), max(1, round(K * len(found) / len(order)))
    new.neighbours = normalize(found).half()
    distances = torch.cat([knn(part, new.neighbours, k) for part in features.split(batch_size)])
    parts = {"energy": _moments(energy(logits, detector.temperature)), "knn": _moments(distances)}
    return new.with_settings(score="energy+knn", neighbours=len(found), nearest=k, score_parts=parts, **UNCALIBRATED)


@torch.no_grad()
def _passed(detector: Detector, images: ImageSet, batch_size: int, track: Track) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits `[N, C]` and features `[N, D]` of the images that can be read."""
    head, was_training = detector.network.head, detector.training
    detector.eval()
    parts = [tuple(torch.zeros(0, width, device=detector.device) for width in (head.out_features, head.in_features))]
    pictures = readable(images, [])
    while batch := list(islice(pictures, batch_size)):
        logits, features = detector(detector.pixels(batch).to(detector.device), with_features=True)
        parts.append((logits.float(), features.float()))
        track.advance(len(batch))
    detector.train(was_training)
    logits, features = (torch.cat(part) for part in zip(*parts))
    return logits, features


def _moments(values: torch.Tensor) -> list[float]:
    """Mean and standard deviation, the latter 1 where all are equal."""
    values = values.cpu().double()  # which the GPUs of Macs do not have
    deviation = values.std().item()
    return [values.mean().item(), deviation if deviation > 0 else 1.0]
