import numpy as np
import pytest
from hypothesis import example, given, strategies as st
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from sona_pipeline.evaluation.metrics import ood_metrics

scores = st.lists(st.integers(-5, 5), min_size=1, max_size=30)


@given(scores, scores)
def test_auroc_is_the_share_of_ordered_pairs(id_scores, ood_scores):
    pairs = [(o > i) + 0.5 * (o == i) for i in id_scores for o in ood_scores]
    assert ood_metrics(id_scores, ood_scores)["auroc"] == pytest.approx(100 * np.mean(pairs))


def share_of_id_images_flagged_with_95_percent_of_ood(id_scores, ood_scores) -> float:
    threshold = max(t for t in ood_scores if np.mean(np.array(ood_scores) >= t) >= 0.95)
    return 100 * np.mean(np.array(id_scores) >= threshold)


@given(scores, scores)
def test_fpr95_is_never_below_the_share_of_id_images_flagged_with_95_percent_of_ood(id_scores, ood_scores):
    least = share_of_id_images_flagged_with_95_percent_of_ood(id_scores, ood_scores)
    assert least - 1e-9 <= ood_metrics(id_scores, ood_scores)["fpr95"] <= 100


def test_fpr95_is_that_share_but_for_points_on_a_straight_line_of_the_curve():
    rng = np.random.default_rng(1)
    id_scores, ood_scores = rng.normal(0, 1, 900), rng.normal(2, 1, 700)
    expected = share_of_id_images_flagged_with_95_percent_of_ood(id_scores, ood_scores)
    assert ood_metrics(id_scores, ood_scores)["fpr95"] == pytest.approx(expected, abs=0.3)
    assert ood_metrics([1, 2, 3, 4], [2.5] * 4)["fpr95"] == 50


def openood_metrics(id_scores, ood_scores) -> dict[str, float]:
    """By the formulas of OpenOOD, on confidences, which are higher for ID images; OOD is the positive class."""
    confidence = np.negative(np.r_[id_scores, ood_scores], dtype=float)
    is_ood = np.arange(len(confidence)) >= len(id_scores)
    flagged, found, _ = roc_curve(is_ood, -confidence)
    id_precision, id_recall, _ = precision_recall_curve(~is_ood, confidence)
    ood_precision, ood_recall, _ = precision_recall_curve(is_ood, -confidence)
    return {
        "auroc": 100 * auc(flagged, found),
        "fpr95": 100 * min(flagged[found >= 0.95]),
        "aupr_in": 100 * auc(id_recall, id_precision),
        "aupr_out": 100 * auc(ood_recall, ood_precision),
    }


@given(scores, scores)
@example([0], [0])
@example([0], [1])
@example([1], [0])
def test_is_that_of_openood_to_the_last_digit_ties_and_tiny_sets_among_them(id_scores, ood_scores):
    assert ood_metrics(id_scores, ood_scores) == openood_metrics(id_scores, ood_scores)


def test_is_that_of_openood_to_the_last_digit_on_continuous_scores():
    rng = np.random.default_rng(2)
    id_scores, ood_scores = rng.normal(0, 1, 700), rng.normal(1, 1, 400)
    assert ood_metrics(id_scores, ood_scores) == openood_metrics(id_scores, ood_scores)


def test_agrees_with_scikit_learn_on_continuous_scores():
    rng = np.random.default_rng(0)
    id_scores, ood_scores = rng.normal(0, 1, 700), rng.normal(1, 1, 400)
    truth = np.r_[np.zeros(700), np.ones(400)]
    found = ood_metrics(id_scores, ood_scores)
    both = np.r_[id_scores, ood_scores]
    assert found["auroc"] == pytest.approx(100 * roc_auc_score(truth, both))
    assert found["aupr_out"] == pytest.approx(100 * average_precision_score(truth, both), abs=0.2)
    assert found["aupr_in"] == pytest.approx(100 * average_precision_score(1 - truth, -both), abs=0.2)


def test_perfect_and_inverted_scores():
    assert ood_metrics([0, 1], [2, 3]) == {"auroc": 100, "fpr95": 0, "aupr_in": 100, "aupr_out": 100}
    assert ood_metrics([2, 3], [0, 1])["auroc"] == 0
    assert ood_metrics([2, 3], [0, 1])["fpr95"] == 100


@pytest.mark.parametrize(
    ("id_scores", "ood_scores"), [([], [1.0]), ([1.0], []), ([float("nan")], [1.0]), ([1.0], [float("inf")])]
)
def test_empty_and_infinite_scores_are_refused(id_scores, ood_scores):
    with pytest.raises(ValueError, match="cannot be ranked"):
        ood_metrics(id_scores, ood_scores)
