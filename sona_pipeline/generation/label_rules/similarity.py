"""The labels nearest to a class, or farthest from it."""

import numpy as np

SHARE = 0.1
"""Part of the labels that is drawn from."""


def close_labels(similarity: np.ndarray) -> np.ndarray:
    """The tenth of the labels that is most similar to each class, at least one label."""
    return far_labels(-similarity)


def far_labels(similarity: np.ndarray) -> np.ndarray:
    """The tenth of the labels that is least similar to each class, at least one label."""
    count = max(1, round(SHARE * similarity.shape[1]))
    return np.argsort(similarity, axis=1, kind="stable")[:, :count]
