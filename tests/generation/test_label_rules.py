"""Rules of OOD labels, against a sort by hand."""

import numpy as np
import pytest
from hypothesis import given, strategies as st

from sona_pipeline.generation.label_rules import RULES


@pytest.mark.parametrize(
    ("labels", "count"), [(1, 1), (4, 1), (9, 1), (10, 1), (14, 1), (16, 2), (20, 2), (33, 3), (60, 6)]
)
@given(seed=st.integers(0, 99))
def test_close_and_far_take_a_tenth_of_the_labels(labels, count, seed):
    similarity = np.random.default_rng(seed).integers(-3, 4, (3, labels)) / 4  # with ties, which the first label wins
    for rule, sign in (("close", -1), ("far", 1)):
        expected = [sorted(range(labels), key=lambda j: (sign * row[j], j))[:count] for row in similarity]
        assert RULES[rule](similarity).tolist() == expected


def test_random_takes_all_labels_for_each_class():
    similarity = np.random.default_rng(0).random((3, 7))
    assert RULES["random"](similarity).tolist() == [list(range(7))] * 3


def test_rules_leave_the_similarities_alone():
    similarity = np.random.default_rng(0).random((3, 20))
    before = similarity.copy()
    for rule in RULES.values():
        rule(similarity)
    assert np.array_equal(similarity, before)


@pytest.mark.parametrize("rule", RULES)
def test_every_class_has_a_label_to_get(rule):
    chosen = RULES[rule](np.zeros((4, 3)))
    assert chosen.shape[0] == 4 and chosen.shape[1] >= 1 and set(chosen.flatten().tolist()) <= {0, 1, 2}
