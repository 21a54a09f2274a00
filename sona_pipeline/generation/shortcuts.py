"""Whether traces of scaling, codec and model tell kinds of images apart, which a detector might learn from them.

A small probe is asked: a logistic regression on what is known to give codecs and generators away, and says nothing
about meaning. Statistics are those of 8 x 8 blocks, as JPEG has them, of the grid between these, and of noise.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

BLOCK, LARGEST = 8, 256
"""Sides in pixels: of a block, and of the middle of an image that is looked at."""
FOLDS, FEWEST, MOST = 5, 50, 500
"""Parts that the probe is tested on in turn, and pairs of images that it needs and takes."""


@dataclass(frozen=True)
class Shortcut:
    """How well the probe tells images from those that they belong to.

    Attributes:
        images, others: what they are.
        pairs: how many of each the probe saw.
        auroc: in percent, on pairs that it was not fitted to: 50 where it cannot tell them; None if they are too few.
    """

    images: str
    others: str
    pairs: int
    auroc: float | None

    @property
    def chance(self) -> float:
        """How far from 50, in percent, the probe may be by chance: two standard deviations, as they were measured."""
        return 106 / math.sqrt(self.pairs)


def told_apart(
    images: str, others: str, count: int, pair: Callable[[int], tuple[Image.Image, Image.Image]]
) -> Shortcut:
    """How well a probe tells two kinds of images, of which there are `count` pairs, of one size in pixels.

    Pairs with an image that cannot be read are left out.

    Args:
        images, others: what the kinds are called.
        count: number of pairs.
        pair: the k-th pair; is called in several threads.
    """

    def seen(k: int) -> list[np.ndarray] | None:
        try:
            return [traces(image) for image in pair(k)]
        except OSError:
            return None

    if count < FEWEST:
        return Shortcut(images, others, count, None)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        found = [features for features in threads.map(seen, range(count)) if features is not None]
    return Shortcut(images, others, len(found), probe_auroc(np.array(found)) if len(found) >= FEWEST else None)


def probe_auroc(found: np.ndarray, seed: int = 0) -> float:
    """AUROC in percent of a probe on features `[N, 2, D]`, the mean of the folds; a pair is in one fold.

    Each side of a fold has as many images, so that 50 is chance, whatever the size.
    """
    fold = np.random.default_rng(seed).permutation(len(found)) % FOLDS
    scores = []
    for k in range(FOLDS):
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
        probe.fit(*_labelled(found[fold != k]))
        features, labels = _labelled(found[fold == k])
        scores.append(roc_auc_score(labels, probe.decision_function(features)))
    return 100 * float(np.mean(scores))


def _labelled(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return pairs.reshape(-1, pairs.shape[-1]), np.tile([1, 0], len(pairs))


def traces(image: Image.Image) -> np.ndarray:
    """Statistics of an image that hardly depend on what it shows, `[D]`; of its middle, on the grid of its blocks."""
    (left, right), (top, bottom) = map(_middle, image.size)
    middle = image.crop((left, top, right, bottom)).convert("RGB").convert("YCbCr")
    grey, *colours = np.moveaxis(np.asarray(middle, dtype=np.float32), 2, 0)
    parts = [*_of_blocks(grey), *(_bands(colour) for colour in colours), _grid(grey), _grid(grey.T), _of_noise(grey)]
    return np.concatenate([*parts, [(grey <= 0).mean(), (grey >= 255).mean()]])


def _middle(side: int) -> tuple[int, int]:
    taken = min(side // BLOCK * BLOCK, LARGEST)
    start = (side - taken) // 2 // BLOCK * BLOCK
    return start, start + taken


def _coefficients(channel: np.ndarray) -> np.ndarray:
    """The discrete cosine transform of the blocks of a channel, `[N, 64]`, by rising vertical frequency."""
    k = np.arange(BLOCK)
    basis = np.sqrt(2 / BLOCK) * np.cos(np.pi * k[:, None] * (2 * k + 1) / (2 * BLOCK))
    basis[0] /= np.sqrt(2)
    rows, columns = (side // BLOCK for side in channel.shape)
    blocks = channel.reshape(rows, BLOCK, columns, BLOCK).swapaxes(1, 2)
    return (basis.astype(np.float32) @ blocks @ basis.T.astype(np.float32)).reshape(-1, BLOCK**2)


def _of_blocks(grey: np.ndarray) -> list[np.ndarray]:
    """Of each frequency but the lowest: the logarithm of its energy, and the share of blocks that have none of it."""
    found = _coefficients(grey)[:, 1:]
    return [_log(np.square(found).mean(axis=0)), (abs(found) < 1).mean(axis=0)]


def _bands(colour: np.ndarray) -> np.ndarray:
    """Logarithms of the energies of a channel of colour by the sum of both frequencies."""
    energies = np.square(_coefficients(colour)).mean(axis=0)
    band = np.add.outer(np.arange(BLOCK), np.arange(BLOCK)).ravel()
    return _log(np.bincount(band, energies)[1:] / np.bincount(band)[1:])


def _grid(grey: np.ndarray) -> np.ndarray:
    """How much larger steps between neighbours are at each of the eight places in a block than in the mean, as logs."""
    steps = abs(np.diff(grey, axis=1, append=grey[:, -1:])).mean(axis=0)
    return _log(steps.reshape(-1, BLOCK).mean(axis=0)) - _log(steps.mean())


def _of_noise(grey: np.ndarray) -> np.ndarray:
    """Moments of what the mean of 3 x 3 pixels leaves, and its correlations with itself nearby."""
    rows = grey[:-2] + grey[1:-1] + grey[2:]
    noise = grey[1:-1, 1:-1] - (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]) / 9
    spread = noise.std()
    noise = (noise - noise.mean()) / (spread + 1e-3)
    shifts = [(0, 1), (1, 0), (1, 1), (0, 2), (2, 0)]
    near = [(noise[y:, x:] * noise[: noise.shape[0] - y, : noise.shape[1] - x]).mean() for y, x in shifts]
    return np.array([_log(spread), (noise**3).mean(), _log((noise**4).mean()), *near])


def _log(values: np.ndarray) -> np.ndarray:
    return np.log(values + 1e-3)
