import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import NearestNeighbors
from steps import SETTINGS, network, step

from sona_pipeline.training.methods import npos
from sona_pipeline.training.methods.npos import NPOS, distances, drawn_outside


def test_distances_are_those_of_scikit_learn():
    generator = np.random.default_rng(0)
    known, points = generator.normal(size=(500, 6)), generator.normal(size=(20, 6))
    unit = known / np.linalg.norm(known, axis=1, keepdims=True)
    search = NearestNeighbors(n_neighbors=300).fit(unit)
    expected = search.kneighbors(points / np.linalg.norm(points, axis=1, keepdims=True))[0][:, -1]
    found = distances(torch.from_numpy(points), torch.from_numpy(known))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_points_are_drawn_around_the_edge_and_lie_outside():
    torch.manual_seed(0)
    towards = torch.tensor([3.0, 0, 0, 0])
    known = towards + torch.randn(1000, 4) * torch.tensor([0.1, 0.1, 0.1, 0.6])  # wide in one direction
    points = drawn_outside(known)
    assert points.shape == (200, 4)
    angles = torch.atan2(known[:, 3], known[:, 0]).abs()
    drawn = torch.atan2(points[:, 3], points[:, 0]).abs()
    assert drawn.median() > angles.quantile(0.8)
    picked = [row for row in known if (torch.cdist(row[None], points).min() < 0.6)]
    assert len(picked) < 900  # around two of them, and not everywhere
    assert distances(points, known).min() > distances(known, known).median()


def test_outliers_are_told_apart_once_the_queue_is_full(monkeypatch):
    monkeypatch.setattr(npos, "KEPT", 30)
    torch.manual_seed(0)
    method = NPOS(network(), SETTINGS)
    for _ in range(29):
        method(step(labels=torch.arange(3), features=torch.randn(3, 5), progress=0.0))
    at = step(features=torch.randn(4, 5).requires_grad_())
    compact, disperse = method.losses(at)
    method.prototypes.copy_(F.normalize(method.prototypes, dim=1))
    assert method.seen.tolist() == [29, 29, 29] and method.queue[:, 29:].abs().sum() == 0
    before = method.prototypes.clone()
    early = method(at)  # the queue is not full before it
    method.prototypes.copy_(before)
    assert method.seen.tolist() == [30, 31, 30]
    assert torch.equal(method.queue[1, 0], at.features[3].detach())  # the newest in place of the oldest
    late = method(at)
    assert late > early + 0.05  # 0.1 times about log 2
    late.backward()
    assert all(weight.grad is not None for weight in method.judge.parameters())
    method.prototypes.copy_(before)
    early_again = method(step(features=at.features, progress=0.39))
    assert early_again.item() == pytest.approx(early.item(), abs=1e-5)
    assert compact > 0 and disperse.isfinite()
