import pytest
import torch
import torch.nn.functional as F
from steps import SETTINGS, network, step

from sona_pipeline.training.methods import npos
from sona_pipeline.training.methods.cider import compactness, dispersion, moved_prototypes
from sona_pipeline.training.methods.npos import NPOS


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


def test_the_loss_has_the_weights_of_the_paper(monkeypatch):
    monkeypatch.setattr(npos, "KEPT", 2)
    torch.manual_seed(0)
    method, outliers = NPOS(network(), SETTINGS), torch.randn(3, 5)
    monkeypatch.setattr(npos, "drawn_outside", lambda own, edge: outliers)
    for _ in range(2):
        method(step(labels=torch.arange(3), features=torch.randn(3, 5), progress=0.0))
    at, before = step(features=torch.randn(4, 5)), method.prototypes.clone()
    z = F.normalize(method.projection(at.features), dim=1)
    moved = moved_prototypes(before, z, at.labels)
    known, unknown = method.judge(at.features)[:, 0].sigmoid(), method.judge(outliers)[:, 0].sigmoid()
    told = -known.log().mean() - (1 - unknown).log().mean()
    expected = compactness(z, at.labels, moved) + 0.5 * dispersion(moved) + 0.1 * told
    assert method(at).item() == pytest.approx(expected.item(), rel=1e-5)
