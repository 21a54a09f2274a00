import math

import pytest
import torch

from sona_pipeline.detection.scores.of_logits import energy
from sona_pipeline.training.methods.outlier_exposure import outlier_exposure


def test_outlier_exposure_worked_by_hand():
    logits = torch.tensor([[math.log(1.0), math.log(3.0)], [0.0, 0.0]])
    by_hand = -((math.log(1 / 4) + math.log(3 / 4)) / 2 + math.log(1 / 2)) / 2
    assert outlier_exposure(logits).item() == pytest.approx(by_hand)


def test_outlier_exposure_is_least_for_uniform_predictions():
    logits = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), requires_grad=True)
    uniform = outlier_exposure(torch.full((5, 7), 3.0))
    assert uniform.item() == pytest.approx(math.log(7))
    assert outlier_exposure(logits).item() > uniform.item()
    outlier_exposure(logits).backward()
    assert torch.allclose(logits.grad, (logits.softmax(dim=1) - 1 / 7).detach() / 5, atol=1e-6)


def test_energy_worked_by_hand_and_higher_for_smaller_logits():
    logits = torch.tensor([[1.0, 2.0], [-1.0, -2.0]])
    by_hand = [-2.0 * math.log(math.exp(a / 2) + math.exp(b / 2)) for a, b in logits.tolist()]
    assert energy(logits, temperature=2.0).tolist() == pytest.approx(by_hand)
    assert energy(logits)[1] > energy(logits)[0]
