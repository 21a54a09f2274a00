"""Scores of logits, against their formulas in double precision by scipy."""

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from scipy.special import logsumexp, softmax

from sona_pipeline.detection.scores import SCORES

FORMULAS = {
    "energy": lambda logits, t: -t * logsumexp(logits / t, axis=1),
    "msp": lambda logits, t: -softmax(logits / t, axis=1).max(axis=1),
    "max_logit": lambda logits, t: -logits.max(axis=1),
}


@pytest.mark.parametrize("name", SCORES)
@given(seed=st.integers(0, 99), temperature=st.sampled_from([0.5, 1.0, 10.0]))
def test_scores_are_their_formulas(name, seed, temperature):
    logits = np.random.default_rng(seed).normal(0, 8, (5, 7)).astype(np.float32)
    found = SCORES[name](torch.from_numpy(logits), temperature).numpy()
    assert found == pytest.approx(FORMULAS[name](logits.astype(float), temperature), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", SCORES)
def test_scores_compare_in_single_precision_and_rise_with_doubt(name):
    sure, unsure = torch.tensor([[9.0, 0.0, 0.0]]), torch.tensor([[1.0, 1.0, 1.0]])
    assert SCORES[name](sure, 1.0) < SCORES[name](unsure, 1.0)
    half = SCORES[name](sure.bfloat16(), 1.0)
    assert half.dtype == torch.float32 and half.item() == pytest.approx(SCORES[name](sure, 1.0).item())
