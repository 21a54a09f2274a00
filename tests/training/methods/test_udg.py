import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from steps import SETTINGS, network, step

from sona_pipeline.training.methods import udg
from sona_pipeline.training.methods.udg import UDG, Groups, clustered


def blobs(centers: list[list[float]], each: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    noise = 0.05 * torch.randn(len(centers) * each, 2, generator=generator)
    return torch.tensor(centers).repeat_interleave(each, dim=0) + noise


@pytest.fixture
def groups(monkeypatch) -> Groups:
    """Two classes far apart; outliers among the first class, outliers by themselves, and outliers half and half."""
    monkeypatch.setattr(udg, "IMAGES_A_CLUSTER", 40)  # 160 points make four clusters
    known = blobs([[1.0, 0], [-1.0, 0], [0, 1.0]], 40, seed=0)[:100]  # 40, 40, 20
    labels = torch.tensor(40 * [0] + 40 * [1] + 20 * [1])
    outliers = torch.cat([blobs([[1.0, 0]], 5, seed=1), blobs([[0, -1.0]], 35, seed=2), blobs([[0, 1.0]], 20, seed=3)])
    return Groups(known, labels, outliers, seed=0)


def test_outliers_among_a_class_get_its_label(groups):
    assert len(set(groups.known.tolist()) | set(groups.outliers.tolist())) == 4
    assert groups.labels.tolist() == 5 * [0] + 55 * [-1]  # 40 of 45 are of class 0; 20 of 40 of class 1
    sizes = {0: 45, 40: 40, 80: 40}  # by the place of one of their ID images
    weights = {place: groups.balance[groups.known[place]].item() for place in sizes}
    assert weights[0] / weights[40] == pytest.approx(math.sqrt(40 / 45))
    everyone = torch.cat([groups.known, groups.outliers])
    assert groups.balance[everyone].mean().item() == pytest.approx(1)


def test_the_loss_by_hand(groups):
    method = UDG(network(), SETTINGS)
    method._groups = groups
    at = step(outlier_places=torch.tensor([2, 10]), places=torch.tensor([0, 50, 90, 60]))  # of class 0, and by itself
    features = torch.cat([at.features, at.outlier_features])
    cluster = torch.tensor([*(groups.known[k] for k in (0, 50, 90, 60)), groups.outliers[2], groups.outliers[10]])
    clusters = F.cross_entropy(method.auxiliary(features), cluster, reduction="none") * groups.balance[cluster]
    label = -at.outlier_logits[0].log_softmax(dim=0)[0] / 5  # the mean over four ID images and one outlier
    exposure = -at.outlier_logits[1].log_softmax(dim=0).mean()
    expected = 0.1 * clusters.mean() + label + 0.5 * exposure
    assert method(at).item() == pytest.approx(expected.item(), rel=1e-5)


def test_clusters_follow_from_the_seed_and_are_of_whitened_directions():
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(200, 5)) * [100, 1, 1, 1, 1]
    assert (clustered(rows, 3) == clustered(rows, 3)).all()
    found = clustered(rows * [0.01, 1, 1, 1, 1], 3)
    assert (clustered(rows, 3) == found).all()  # one direction counts as much as another


def test_each_epoch_has_clusters_and_an_auxiliary_head_of_its_own():
    generator = torch.Generator().manual_seed(0)
    known, outliers = torch.randn(90, 5, generator=generator), torch.randn(60, 5, generator=generator)
    method = UDG(network(), SETTINGS)
    with pytest.raises(RuntimeError, match="`begin_epoch` comes first"):
        method(step())
    heads = []
    for epoch in (0, 1, 0):
        method.begin_epoch(epoch, known, torch.arange(90) % 3, outliers)
        heads.append(method.auxiliary.weight.detach().clone())
    assert torch.equal(heads[0], heads[2]) and not torch.equal(heads[0], heads[1])
    assert heads[0].std().item() == pytest.approx(0.01, rel=0.1) and method.auxiliary.bias.abs().sum() == 0
