"""How much methods differ from a baseline: differences paired by seed, with bootstrap intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from sona_pipeline.evaluation.metrics import ood_metrics
from sona_pipeline.evaluation.score_table import ScoreTable, by_set, score_columns

RESAMPLES, CHUNK, SEED = 2000, 100, 0
"""Resamples of the bootstrap, how many are computed at a time, and the seed that they follow from."""
LEVEL = 0.95
"""Share of the resamples that lie in an interval."""
LOWER_IS_BETTER = ("fpr95",)
METRICS = ("auroc", "fpr95")
Differences = np.ndarray
"""`[S, 1 + R]`: of S seeds, the difference on the images as they are, and in R resamples of them."""


def compare(tables: Mapping[str, Sequence[ScoreTable]], baseline: str) -> pd.DataFrame:
    """The methods less the baseline, seed by seed, on the very same test images.

    A resample draws as many test images of each set, with replacement, and the same ones for all methods and seeds; and
    as many seeds. The interval has the middle 95 % of the mean differences of 2,000 resamples (percentile bootstrap;
    Efron and Tibshirani 1993). Of few seeds the interval says little about others: with one it is of images only.

    Args:
        tables: scores of `score_images` by method, a table a seed, in the same order of seeds.
        baseline: one of the methods.

    Returns:
        A row a number: `method`, `score`, `group` ("id", "near_ood" or "far_ood"), `set` (or "mean"), `metric`
        (`accuracy`, `auroc`, `fpr95`), `difference`, `low` and `high` in percentage points, `verdict` ("better",
        "level" where the interval holds zero, or "worse") and the number of `seeds`. `attrs` has the `baseline`.

    Raises:
        ValueError: there is no such method, or numbers of seeds or images differ.
    """
    check_baseline([name for name, runs in tables.items() for _ in runs], baseline)
    rows = []
    for method in tables:
        if method != baseline:
            pairs = list(zip(tables[method], tables[baseline]))
            for score in _common_scores(method, pairs):
                for group, name, metric, gaps in _differences(pairs, score):
                    sign = -1 if metric in LOWER_IS_BETTER else 1
                    rows.append((method, score, group, name, metric, *_interval(gaps, sign), len(pairs)))
    names = ["method", "score", "group", "set", "metric", "difference", "low", "high", "verdict", "seeds"]
    found = pd.DataFrame(rows, columns=names)
    found.attrs["baseline"] = baseline
    return found


def compare_folds(folds: Mapping[str, tuple[ScoreTable, ScoreTable]], score: str) -> pd.DataFrame:
    """A method less a baseline where both were trained and tested anew for each of several held-out OOD sets.

    A resample draws images with replacement, each as often in all folds that have it; images of one role in all folds
    are drawn among themselves, so that each fold keeps its numbers. It also draws as many folds: the interval of the
    mean is of images and held-out sets. Of few sets it says little about others.

    Args:
        folds: by the name of what was held out, the scores of the method and of the baseline, on the same images; the
            OOD images in them are near-OOD. An image has the same key in all folds.
        score: that both have.

    Returns:
        A row a fold and metric, and for the mean of the folds, where `held_out` is empty: `held_out`, `metric`,
        `ours`, `theirs`, `difference`, `low`, `high` and `verdict`, as in `compare`.
    """
    pairs = list(folds.values())
    sides = [[_sides(table, score) for table in pair] for pair in pairs]
    keys = [tuple(pair[0][pair[0]["group"] == group]["key"] for group in ("id", "near_ood")) for pair in pairs]
    exact = [[ood_metrics(*both) for both in pair] for pair in sides]
    found: dict[str, list[list[np.ndarray]]] = {
        metric: [[np.array([one[metric] - other[metric]])] for one, other in exact] for metric in METRICS
    }
    ranked = [[_Ranked(*both) for both in pair] for pair in sides]
    for counts in _drawn_jointly(keys):
        for fold, ((one, other), drawn) in enumerate(zip(ranked, counts)):
            for metric, ours, theirs in zip(METRICS, one(*drawn), other(*drawn)):
                found[metric][fold].append(ours - theirs)
    rows = []
    for metric, by_fold in found.items():
        gaps, sign = np.array([np.concatenate(parts) for parts in by_fold]), -1 if metric in LOWER_IS_BETTER else 1
        values = np.array([[row[metric] for row in pair] for pair in exact])
        for k, name in enumerate(folds):
            rows.append((name, metric, *values[k], *_interval(gaps[k : k + 1], sign)))
        rows.append(("", metric, *values.mean(axis=0), *_interval(gaps, sign)))
    return pd.DataFrame(rows, columns=["held_out", "metric", "ours", "theirs", "difference", "low", "high", "verdict"])


def _sides(table: ScoreTable, score: str) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the ID images and of the near-OOD images."""
    return tuple(table[table["group"] == group][score].to_numpy() for group in ("id", "near_ood"))


def _drawn_jointly(
    folds: Sequence[tuple[Sequence[str], Sequence[str]]],
) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
    """How often the ID and the OOD images of each fold, given by their keys, are drawn, `[CHUNK, N]` at a time."""
    roles: dict[str, list[int]] = {}
    for fold, sides in enumerate(folds):
        for role, keys in enumerate(sides, start=1):
            for key in keys:
                roles.setdefault(key, [0] * len(folds))[fold] = role
    place = {key: k for k, key in enumerate(roles)}
    alike: dict[tuple[int, ...], list[int]] = {}
    for key, role_in_each in roles.items():
        alike.setdefault(tuple(role_in_each), []).append(place[key])
    places = [[np.array([place[key] for key in keys]) for keys in sides] for sides in folds]
    rng, counts = np.random.default_rng([SEED, 3]), np.empty((CHUNK, len(roles)))
    for _ in range(RESAMPLES // CHUNK):
        for members in alike.values():
            counts[:, members] = _counts(rng, len(members))
        yield [(counts[:, known], counts[:, unknown]) for known, unknown in places]


def check_baseline(methods: Sequence[str], baseline: str) -> None:
    """Raise ValueError unless the baseline is among the methods, named once a seed, and all have as many seeds."""
    counts = Counter(methods)
    if baseline not in counts:
        raise ValueError(f"the baseline {baseline!r} is none of the methods: it has to be one of {sorted(counts)}")
    for method, count in counts.items():
        if count != counts[baseline]:
            raise ValueError(
                f"{method!r} has {count} detectors and the baseline {baseline!r} {counts[baseline]}, but differences"
                " are taken seed by seed: give as many of each"
            )


def check_seeds(seeds: Sequence[tuple[str, int | None]], baseline: str) -> None:
    """Raise ValueError if a method's detectors, one after the other, have other seeds than the baseline's.

    Args:
        seeds: method and seed of each detector; None is not known, and counts as the same.
        baseline: one of the methods.
    """
    by_method: dict[str, list[int | None]] = {}
    for method, seed in seeds:
        by_method.setdefault(method, []).append(seed)
    for method, own in by_method.items():
        if any(None not in pair and pair[0] != pair[1] for pair in zip(own, by_method[baseline])):
            raise ValueError(
                f"the detectors of {method!r} have the seeds {own} and those of the baseline {baseline!r}"
                f" {by_method[baseline]}, but differences are taken seed by seed: give the same seeds in the same order"
            )


def _common_scores(method: str, pairs: Sequence[tuple[ScoreTable, ScoreTable]]) -> list[str]:
    """The scores that all tables of a method and of the baseline have; ValueError if there is none."""
    columns = ["group", "set", "key"]
    for one, other in pairs:
        if len(one) != len(other) or not (one[columns].to_numpy() == other[columns].to_numpy()).all():
            raise ValueError(
                f"the scores of {method!r} and of the baseline are not of the same images: score both anew"
            )
    scores = [score for score in score_columns(pairs[0][0]) if all(score in table for pair in pairs for table in pair)]
    if not scores:
        raise ValueError(f"{method!r} and the baseline have no score in common: name one that both are judged by")
    return scores


def _differences(
    pairs: Sequence[tuple[ScoreTable, ScoreTable]], score: str
) -> Iterator[tuple[str, str, str, Differences]]:
    """Group, set, metric and differences of everything that methods are compared by, in percentage points."""
    known = [[by_set(table, score, "id")["id"] for table in pair] for pair in pairs]
    right = [[_right(table) for table in pair] for pair in pairs]
    yield "id", "id", "accuracy", _of_id(right)
    for group in ("near_ood", "far_ood"):
        sets = [[by_set(table, score, group) for table in pair] for pair in pairs]
        found: dict[str, list[Differences]] = {metric: [] for metric in METRICS}
        for name in sets[0][0]:
            unknown = [[members[name] for members in pair] for pair in sets]
            for metric, values in _of_set(known, unknown).items():
                found[metric].append(values)
                yield group, name, metric, values
        for metric, all_values in found.items():
            if all_values:
                yield group, "mean", metric, np.mean(all_values, axis=0)


def _right(table: ScoreTable) -> np.ndarray:
    rows = table[table["group"] == "id"]
    return (rows["label"] == rows["predicted"]).to_numpy(dtype=float)


def _of_id(right: Sequence[Sequence[np.ndarray]]) -> Differences:
    """Differences of the accuracy, of which images `[N]` are classified rightly."""
    count = len(right[0][0])
    parts = [np.ones((1, count)), *_drawn(count, 0)]
    return np.array([np.concatenate([100 * part @ (one - other) / count for part in parts]) for one, other in right])


def _of_set(known: Sequence[Sequence[np.ndarray]], unknown: Sequence[Sequence[np.ndarray]]) -> dict[str, Differences]:
    """Differences of `METRICS` on an OOD set; the ID images of a resample are the same for every set."""
    exact = [[ood_metrics(*both) for both in zip(*pair)] for pair in zip(known, unknown)]
    found: dict[str, list[list[np.ndarray]]] = {
        metric: [[np.array([one[metric] - other[metric]])] for one, other in exact] for metric in METRICS
    }
    prepared = [[_Ranked(*both) for both in zip(*pair)] for pair in zip(known, unknown)]
    for id_counts, ood_counts in zip(_drawn(len(known[0][0]), 0), _drawn(len(unknown[0][0]), 1)):
        for seed, (one, other) in enumerate(prepared):
            for metric, ours, theirs in zip(METRICS, one(id_counts, ood_counts), other(id_counts, ood_counts)):
                found[metric][seed].append(ours - theirs)
    return {metric: np.array([np.concatenate(parts) for parts in seeds]) for metric, seeds in found.items()}


def _drawn(count: int, stream: int) -> Iterator[np.ndarray]:
    """How often each of `count` images is drawn in the resamples, `[CHUNK, N]` at a time; the same at every call."""
    rng = np.random.default_rng([SEED, stream])
    for _ in range(RESAMPLES // CHUNK):
        yield _counts(rng, count)


def _counts(rng: np.random.Generator, count: int) -> np.ndarray:
    """How often each of `count` images is in `CHUNK` draws of as many."""
    drawn = rng.integers(count, size=(CHUNK, count)) + count * np.arange(CHUNK)[:, None]
    return np.bincount(drawn.ravel(), minlength=CHUNK * count).reshape(CHUNK, count).astype(float)


class _Ranked:
    """AUROC and FPR@95 of scores, of which each counts as often as it was drawn.

    Args:
        known: scores of ID images `[N]`.
        unknown: those of OOD images `[M]`.
    """

    def __init__(self, known: np.ndarray, unknown: np.ndarray):
        self.order, self.falling = np.argsort(known), np.argsort(-unknown)
        ranked = known[self.order]
        self.below = np.searchsorted(ranked, unknown[self.falling], "left")
        self.upto = np.searchsorted(ranked, unknown[self.falling], "right")

    def __call__(self, id_counts: np.ndarray, ood_counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Both in percent, `[R]`, for counts `[R, N]` and `[R, M]`."""
        id_sums = np.cumsum(np.pad(id_counts[:, self.order], ((0, 0), (1, 0))), axis=1)
        ood_counts = ood_counts[:, self.falling]
        lower = (id_sums[:, self.below] + id_sums[:, self.upto]) / 2
        total = id_sums[:, -1]
        auroc = (lower * ood_counts).sum(axis=1) / (total * ood_counts.sum(axis=1))
        enough = np.cumsum(ood_counts, axis=1) >= 0.95 * ood_counts.sum(axis=1, keepdims=True)
        last = self.below[enough.argmax(axis=1)]
        flagged = 1 - id_sums[np.arange(len(id_sums)), last] / total
        return 100 * auroc, 100 * flagged


def _interval(found: Differences, sign: int) -> tuple[float, float, float, str]:
    """Mean difference, interval and verdict; `sign` is -1 where less is better."""
    rng = np.random.default_rng([SEED, 2])
    seeds, resamples = found.shape[0], found.shape[1] - 1
    drawn = rng.integers(seeds, size=(seeds, resamples))
    means = np.take_along_axis(found[:, 1:], drawn, axis=0).mean(axis=0)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    verdict = "level" if low <= 0 <= high else "better" if sign * low > 0 else "worse"
    return float(found[:, 0].mean()), float(low), float(high), verdict
