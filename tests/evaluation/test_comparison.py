"""Differences and intervals against scikit-learn and a bootstrap that really draws images, one resample at a time."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from sona_pipeline.evaluation import comparison
from sona_pipeline.evaluation.comparison import _Ranked, compare, compare_folds
from sona_pipeline.evaluation.metrics import ood_metrics


def table(gap: float, seed: int, *, images: int = 60, accuracy: float = 0.8) -> pd.DataFrame:
    """Scores of which those of OOD images lie `gap` higher, in steps, so that some are equal."""
    rng = np.random.default_rng(seed)
    parts = []
    for group, name, count in (
        ("id", "id", images),
        ("near_ood", "fish", images // 2),
        ("near_ood", "birds", images // 3),
        ("far_ood", "digits", images // 2),
    ):
        scores = rng.normal(size=count).round(1) + (gap if group != "id" else 0)
        labels = np.zeros(count, int) if group == "id" else np.full(count, -1)
        predicted = (rng.random(count) > accuracy).astype(int)
        keys = [f"{name} {k}" for k in range(count)]
        parts.append(
            pd.DataFrame(
                {"group": group, "set": name, "key": keys, "label": labels, "predicted": predicted, "confidence": 1.0}
            ).assign(energy=scores)
        )
    return pd.concat(parts, ignore_index=True)


def row(found: pd.DataFrame, group: str, name: str, metric: str) -> pd.Series:
    return found[(found["group"] == group) & (found["set"] == name) & (found["metric"] == metric)].iloc[0]


SCORES = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=12)


@given(SCORES, SCORES, st.data())
def test_counted_metrics_are_those_of_images_that_are_really_repeated(known, unknown, data):
    counts = [
        np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(some), max_size=len(some)).filter(any)))
        for some in (known, unknown)
    ]
    auroc, fpr = _Ranked(np.array(known), np.array(unknown))(counts[0][None].astype(float), counts[1][None] * 1.0)
    repeated = [np.repeat(some, times) for some, times in zip((known, unknown), counts)]
    is_ood = np.concatenate([np.zeros(len(repeated[0])), np.ones(len(repeated[1]))])
    assert auroc[0] == pytest.approx(100 * roc_auc_score(is_ood, np.concatenate(repeated)))
    rates = roc_curve(is_ood, np.concatenate(repeated), drop_intermediate=False)
    assert fpr[0] == pytest.approx(100 * rates[0][np.argmax(rates[1] >= 0.95)])


def test_differences_are_the_means_of_those_of_the_seeds():
    ours, theirs = [table(1.0, seed) for seed in (0, 1)], [table(0.4, seed) for seed in (10, 11)]
    found = compare({"ce": theirs, "sona": ours}, "ce")
    assert set(found["method"]) == {"sona"} and set(found["seeds"]) == {2}

    def auroc(one: pd.DataFrame, name: str) -> float:
        part = one[one["set"].isin(["id", name])]
        return 100 * roc_auc_score(part["group"] != "id", part["energy"])

    gaps = {n: np.mean([auroc(a, n) - auroc(b, n) for a, b in zip(ours, theirs)]) for n in ("fish", "birds", "digits")}
    for group, name in (("near_ood", "fish"), ("near_ood", "birds"), ("far_ood", "digits")):
        assert row(found, group, name, "auroc")["difference"] == pytest.approx(gaps[name])
    assert row(found, "near_ood", "mean", "auroc")["difference"] == pytest.approx((gaps["fish"] + gaps["birds"]) / 2)
    right = [100 * (t.label == t.predicted)[t.group == "id"].mean() for t in (*ours, *theirs)]
    assert row(found, "id", "id", "accuracy")["difference"] == pytest.approx(
        (right[0] + right[1] - right[2] - right[3]) / 2
    )


def test_interval_is_that_of_a_bootstrap_that_draws_images_and_seeds():
    ours, theirs = [table(1.0, seed) for seed in range(3)], [table(0.6, seed + 10) for seed in range(3)]
    found = row(compare({"sona": ours, "ce": theirs}, "ce"), "far_ood", "digits", "auroc")
    rng, gaps, is_ood = np.random.default_rng(5), [], [0] * 60 + [1] * 30
    scores = [
        [np.concatenate([one[one["set"] == name]["energy"] for name in ("id", "digits")]) for one in runs]
        for runs in (ours, theirs)
    ]
    for _ in range(700):
        drawn = np.concatenate([rng.integers(60, size=60), 60 + rng.integers(30, size=30)])
        aurocs = [[100 * roc_auc_score(is_ood, one[drawn]) for one in runs] for runs in scores]
        seeds = rng.integers(3, size=3)
        gaps.append(np.mean([aurocs[0][s] - aurocs[1][s] for s in seeds]))
    low, high = np.quantile(gaps, [0.025, 0.975])
    assert found["low"] == pytest.approx(low, abs=0.2 * (high - low))
    assert found["high"] == pytest.approx(high, abs=0.2 * (high - low))


def test_verdicts_know_which_way_is_better():
    far_apart = compare({"sona": [table(3.0, 0)], "ce": [table(0.0, 1)]}, "ce")
    assert row(far_apart, "near_ood", "mean", "auroc")["verdict"] == "better"
    less_flagged = row(far_apart, "near_ood", "mean", "fpr95")
    assert less_flagged["difference"] < 0 and less_flagged["verdict"] == "better"
    turned = compare({"sona": [table(3.0, 0)], "ce": [table(0.0, 1)]}, "sona")
    assert set(turned[turned["group"] != "id"]["verdict"]) == {"worse"}
    same = compare({"sona": [table(1.0, 0)], "ce": [table(1.0, 0)]}, "ce")
    assert set(same["verdict"]) == {"level"}
    assert (same[["difference", "low", "high"]] == 0).all().all()


def test_intervals_hold_the_truth_about_as_often_as_they_say(monkeypatch):
    monkeypatch.setattr(comparison, "RESAMPLES", 200)
    held = 0
    for seed in range(100):
        found = compare({"a": [table(1.0, seed)], "b": [table(1.0, seed + 1000)]}, "b")
        held += row(found, "far_ood", "digits", "auroc")["verdict"] == "level"
    assert 85 <= held <= 100


def test_what_cannot_be_paired_is_refused():
    with pytest.raises(ValueError, match="the baseline 'ce' is none of the methods"):
        compare({"sona": [table(1, 0)]}, "ce")
    with pytest.raises(ValueError, match="'sona' has 2 detectors and the baseline 'ce' 1"):
        compare({"sona": [table(1, 0), table(1, 1)], "ce": [table(0, 2)]}, "ce")
    with pytest.raises(ValueError, match="not of the same images"):
        compare({"sona": [table(1, 0)], "ce": [table(0, 2, images=90)]}, "ce")


def folds_of(seed: int, sizes: tuple[int, int, int]) -> dict:
    """Scores of classes that are held out in turn, of which the last is never."""
    rng, folds = np.random.default_rng(seed), {}
    for held_out in range(2):
        tables = []
        for shift in (1.0, 0.4):
            rows = [
                ("near_ood" if one == held_out else "id", "set", f"{one}/{k}", rng.normal(shift * (one == held_out)))
                for one, size in enumerate(sizes)
                for k in range(size)
            ]
            tables.append(pd.DataFrame(rows, columns=["group", "set", "key", "energy"]))
        folds[str(held_out)] = tuple(tables)
    return folds


def test_folds_by_a_slow_bootstrap():
    """Images of a class are drawn among themselves and for all folds at once, then folds, in plain loops."""
    sizes, rounds = (30, 20, 40), 400
    folds = folds_of(0, sizes)
    found = compare_folds(folds, "energy").set_index(["held_out", "metric"])
    rng, gaps = np.random.default_rng(1), {"auroc": [], "fpr95": []}
    for _ in range(rounds):
        drawn = [f"{one}/{k}" for one, size in enumerate(sizes) for k in rng.integers(size, size=size)]
        of_fold = {metric: [] for metric in gaps}
        for tables in folds.values():
            values = []
            for table in tables:
                rows = table.set_index("key").loc[drawn]
                sides = [rows[rows["group"] == group]["energy"].to_numpy() for group in ("id", "near_ood")]
                values.append(ood_metrics(*sides))
            for metric in gaps:
                of_fold[metric].append(values[0][metric] - values[1][metric])
        chosen = rng.integers(2, size=2)
        for metric in gaps:
            gaps[metric].append(np.mean([of_fold[metric][k] for k in chosen]))
    for metric, values in gaps.items():
        row, tolerance = found.loc[("", metric)], 0.2 * np.ptp(np.quantile(values, [0.025, 0.975])) + 0.5
        for bound, share in (("low", 0.025), ("high", 0.975)):
            assert row[bound] == pytest.approx(np.quantile(values, share), abs=tolerance)
        assert row["difference"] == pytest.approx(np.mean([found.loc[(name, metric)]["difference"] for name in folds]))
