import math

import pytest
import torch
import torch.nn.functional as F
from steps import SETTINGS, network, step

from sona_pipeline.training.methods.cider import CIDER, compactness, dispersion, moved_prototypes


def unit(*shape: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_compactness_and_dispersion_by_loops():
    z, prototypes, labels = unit(5, 4, seed=0), unit(3, 4, seed=1), [0, 2, 1, 1, 0]
    total = 0.0
    for row, label in zip(z, labels):
        powers = [math.exp(float(row @ prototype) / 0.1) for prototype in prototypes]
        total -= math.log(powers[label] / sum(powers))
    assert compactness(z, torch.tensor(labels), prototypes).item() == pytest.approx(0.1 / 0.07 * total / 5, rel=1e-4)
    total = 0.0
    for i in range(3):
        others = [math.exp(float(prototypes[i] @ prototypes[j]) / 0.1) for j in range(3) if j != i]
        total += math.log(sum(others) / 2)
    assert dispersion(prototypes).item() == pytest.approx(total / 3, rel=1e-4)


def test_prototypes_move_one_feature_after_the_other():
    prototypes, z, labels = unit(4, 6, seed=2), unit(12, 6, seed=3), torch.tensor([0, 1, 1, 0, 3, 1, 0, 0, 3, 1, 1, 0])
    expected = prototypes.clone()
    for row, label in zip(z, labels):
        expected[label] = F.normalize(0.95 * expected[label] + 0.05 * row, dim=0)
    moved = moved_prototypes(prototypes, z, labels)
    assert torch.allclose(moved, expected, atol=1e-6)
    assert torch.equal(moved[2], prototypes[2])  # of a class without an image
    first = moved_prototypes(torch.zeros(4, 6), z[:1], labels[:1])
    assert torch.allclose(first[0], z[0], atol=1e-6)  # where there is none yet, the first feature is one


def test_the_loss_trains_the_projection_and_the_features():
    torch.manual_seed(0)
    method = CIDER(network(), SETTINGS)
    at = step(features=torch.randn(4, 5).requires_grad_())
    method(at)  # the first prototypes
    before = method.prototypes.clone()
    z = F.normalize(method.projection(at.features), dim=1)
    moved = moved_prototypes(before, z, at.labels)
    expected = 2 * compactness(z, at.labels, moved.detach()) + dispersion(moved)
    loss = method(at)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(method.prototypes, moved) and not method.prototypes.requires_grad
    loss.backward()
    assert at.features.grad.abs().sum() > 0
    assert all(weight.grad.abs().sum() > 0 for weight in method.projection.parameters() if weight.dim() == 2)
