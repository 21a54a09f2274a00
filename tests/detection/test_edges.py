from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors

from sona_pipeline.detection.edges import Edge, _ascending, distances, drawn_outside

EDGE = Edge(neighbours=300, size=200, picked=2, drawn=600, kept=200, spread=0.1)


def test_distances_are_those_of_scikit_learn():
    generator = np.random.default_rng(0)
    known, points = generator.normal(size=(500, 6)), generator.normal(size=(20, 6))
    unit = known / np.linalg.norm(known, axis=1, keepdims=True)
    search = NearestNeighbors(n_neighbors=300).fit(unit)
    expected = search.kneighbors(points / np.linalg.norm(points, axis=1, keepdims=True))[0][:, -1]
    found = distances(torch.from_numpy(points), torch.from_numpy(known), 300)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_place_in_order_is_the_same_on_all_devices():
    values = torch.randn(7, 40, generator=torch.Generator().manual_seed(0))
    elsewhere = SimpleNamespace(device=SimpleNamespace(type="cuda"), kthvalue=values.kthvalue)
    for place in (0, 11, 39):
        expected = values.sort(dim=1).values[:, place]
        assert torch.equal(_ascending(values, place), expected)
        assert torch.equal(_ascending(elsewhere, place), expected)


def test_points_are_drawn_around_the_edge_and_lie_outside():
    torch.manual_seed(0)
    towards = torch.tensor([3.0, 0, 0, 0])
    known = towards + torch.randn(1000, 4) * torch.tensor([0.1, 0.1, 0.1, 0.6])  # wide in one direction
    points = drawn_outside(known, EDGE)
    assert points.shape == (400, 4)
    angles = torch.atan2(known[:, 3], known[:, 0]).abs()
    drawn = torch.atan2(points[:, 3], points[:, 0]).abs()
    assert drawn.median() > angles.quantile(0.8)
    picked = [row for row in known if (torch.cdist(row[None], points).min() < 0.6)]
    assert len(picked) < 900  # around two of them, and not everywhere
    for around in points.split(200):
        assert (around - around.mean(dim=0)).norm(dim=1).max() < 0.8  # eight deviations
    assert not torch.equal(points[:200], points[200:])
    assert distances(points, known, 300).min() > distances(known, known, 300).median()


def test_points_around_every_feature_of_the_edge():
    torch.manual_seed(0)
    known = torch.randn(50, 4)
    edge = replace(EDGE, neighbours=10, size=5, picked=None, drawn=100, kept=2, spread=0.001)
    points = drawn_outside(known, edge)
    at_the_edge = distances(known, known, 10).topk(5).indices.tolist()
    nearest = torch.cdist(points, known).argmin(dim=1).tolist()
    assert nearest == [place for place in at_the_edge for _ in range(2)]
