import math

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import entropy as entropy_by_scipy
from steps import SETTINGS, network, step

from sona_pipeline.training.methods.mcd import MCD, discrepancy, entropy


def test_entropy_is_over_the_classes():
    logits = step().logits
    expected = entropy_by_scipy(logits.softmax(dim=1).numpy(), axis=1)
    assert entropy(logits).tolist() == pytest.approx(expected.tolist(), rel=1e-5)


def test_discrepancy_by_hand():
    """The first head is unsure of one outlier (log 3) and sure of the other (0); the second one is sure of both."""
    unsure, sure = [0.0, 0.0, 0.0], [90.0, 0.0, 0.0]
    first, second = torch.tensor([unsure, sure]), torch.tensor([sure, sure])
    assert discrepancy(first, second).item() == pytest.approx(1.2 - math.log(3) / 2, rel=1e-5)
    assert discrepancy(second, first).item() == pytest.approx(1.2 + math.log(3) / 2, rel=1e-5)
    wide = torch.zeros(1, 10), torch.tensor([[90.0] + 9 * [0.0]])  # log 10 is above the margin
    assert discrepancy(*wide) == 0


def test_outliers_come_in_halfway():
    body = network(heads=2)
    method = MCD(body, SETTINGS)
    early, late = step(progress=0.49), step(progress=0.5)
    of_classes = F.cross_entropy(body.second_head(early.features), early.labels)
    assert method(early).item() == pytest.approx(of_classes.item())
    apart = discrepancy(late.outlier_logits, body.second_head(late.outlier_features))
    assert method(late).item() == pytest.approx((of_classes + apart).item())
    assert apart > 0.1 and not list(method.parameters())
    with pytest.raises(ValueError, match="needs a network of two heads"):
        MCD(network(), SETTINGS)(early)
