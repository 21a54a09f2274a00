import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pytorch_ood.loss import EnergyRegularizedLoss
from steps import SETTINGS, exposure, network, step
from torch import nn

from sona_pipeline.common.settings import settings_of
from sona_pipeline.detection.networks import Network
from sona_pipeline.detection.scores.of_logits import energy
from sona_pipeline.training.methods import METHODS, vos
from sona_pipeline.training.methods.energy_margin import EnergyMargin, energy_margin
from sona_pipeline.training.methods.mixoe import MixOE
from sona_pipeline.training.methods.outlier_exposure import OutlierExposure, outlier_exposure
from sona_pipeline.training.methods.vos import VOS
from sona_pipeline.training.settings import TrainingSettings


def test_help_and_guide_name_every_method():
    (help_text,) = [setting.help for setting in settings_of(TrainingSettings) if setting.name == "method"]
    guide = (Path(__file__).parents[3] / "examples" / "guides" / "detectors.md").read_text(encoding="utf-8")
    assert [name for name in METHODS if f"'{name}'" not in help_text or f"\n| `{name}` | " not in guide] == []


def test_outlier_exposure_and_energy_margin_are_their_losses():
    at = step()
    assert OutlierExposure(network(), SETTINGS)(at) == outlier_exposure(at.outlier_logits)
    assert EnergyMargin(network(), SETTINGS)(at) == energy_margin(at.logits, at.outlier_logits)


def test_energy_margin_is_that_of_pytorch_ood_with_the_margins_of_the_batch():
    at = step()
    lower = energy(at.logits).mean().item()
    peer = EnergyRegularizedLoss(alpha=1.0, margin_in=lower, margin_out=lower + 10)
    labels = torch.tensor([0, 1, 2, 1, -1, -1])
    both = torch.cat([at.logits, at.outlier_logits])
    expected = peer(both, labels) - nn.functional.cross_entropy(at.logits, at.labels)
    assert energy_margin(at.logits, at.outlier_logits).item() == pytest.approx(expected.item(), rel=1e-4)


def test_fixed_energy_margins_are_those_of_the_paper():
    """Equation 8 of Liu et al. by hand: energies -log 2 and -5 - log 2 of ID images, -log 3 - 20 of an outlier."""
    known = torch.tensor([[0.0, 0.0], [5.0, 5.0]])
    unknown = torch.tensor([[20.0 + math.log(2), 20.0]])
    e_in, e_out = (-math.log(2), -5 - math.log(2)), -20 - math.log(3)
    expected = ((e_in[0] + 4) ** 2 + max(0, e_in[1] + 4) ** 2) / 2 + (-3 - e_out) ** 2
    assert energy_margin(known, unknown, -4.0, -3.0).item() == pytest.approx(expected, rel=1e-6)
    assert energy_margin(known - 30, unknown - 60, 100.0, -5.0) == 0  # beyond both margins


@pytest.mark.parametrize(("m_in", "m_out"), [(-23.0, -5.0), (-1.5, -0.5)])
def test_fixed_energy_margins_are_those_of_pytorch_ood(m_in, m_out):
    at = step()
    labels = torch.tensor([0, 1, 2, 1, -1, -1])
    peer = EnergyRegularizedLoss(alpha=1.0, margin_in=m_in, margin_out=m_out)
    expected = peer(torch.cat([at.logits, at.outlier_logits]), labels) - F.cross_entropy(at.logits, at.labels)
    settings = replace(SETTINGS, method="energy", m_in=m_in, m_out=m_out)
    assert EnergyMargin(network(), settings)(at).item() == pytest.approx(expected.item(), rel=1e-4)


def test_energy_margin_does_not_move_all_energies():
    """The gradient has no part that adds one number to every logit, whatever the outliers are."""
    logits, outliers = step().logits.requires_grad_(), step().outlier_logits.requires_grad_()
    energy_margin(logits, outliers).backward()
    assert logits.grad.sum().item() + outliers.grad.sum().item() == pytest.approx(0, abs=1e-4)
    assert outliers.grad.sum().abs() > 0.1


def test_mixoe_lays_a_box_of_the_outlier_into_the_image():
    torch.manual_seed(0)
    images, outliers = torch.zeros(500, 3, 16, 16), torch.ones(500, 3, 16, 16)
    mixed, share = MixOE(network(), SETTINGS).expose(exposure(images, outliers))
    assert set(mixed.unique().tolist()) == {0.0, 1.0}
    assert torch.allclose(1 - mixed.mean(dim=(1, 2, 3)), share, atol=1e-6)
    for picture in mixed[:50, 0].bool():
        rows, columns = picture.any(dim=1), picture.any(dim=0)
        assert picture.sum() == rows.sum() * columns.sum()  # one rectangle
    assert 0.5 < share.mean() < 0.8 and share.min() < 0.2 and share.max() > 0.97


def test_mixoe_loss_is_cross_entropy_to_the_mixed_target():
    share = torch.tensor([0.25, 1.0])
    at = step(id_share=share)
    target = torch.tensor([[0, 0.25, 0], [0, 1.0, 0]]) + (1 - share).unsqueeze(1) / 3
    expected = nn.functional.cross_entropy(at.outlier_logits, target)
    method = MixOE(network(), SETTINGS)
    assert method(at).item() == pytest.approx(expected.item(), rel=1e-5)
    assert method(step()).item() == pytest.approx(outlier_exposure(step().outlier_logits).item())


def filled(body: Network, monkeypatch, kept: int = 40) -> VOS:
    """VOS that has seen `kept` features of each class, around (0, ...), (10, ...) and (20, ...)."""
    monkeypatch.setattr(vos, "KEPT", kept)
    torch.manual_seed(0)
    method = VOS(body, SETTINGS)
    spread = torch.tensor([1.0, 0.1, 0.1, 0.1, 3.0])
    for _ in range(kept):
        labels = torch.arange(3)
        features = 10.0 * labels.unsqueeze(1) + spread * torch.randn(3, 5)
        method(step(labels=labels, features=features, logits=body.head(features), progress=0.0))
    return method


def test_vos_keeps_the_latest_features_of_each_class(monkeypatch):
    method = filled(network(), monkeypatch)
    assert method.seen.tolist() == [40] * 3
    assert torch.allclose(method.queue.mean(dim=(1, 2)), torch.tensor([0.0, 10, 20]), atol=0.5)
    late = torch.full((1, 5), 99.0)
    method(step(labels=torch.tensor([1]), features=late, progress=0.0))
    assert torch.equal(method.queue[1, 0], late[0]) and method.seen.tolist() == [40, 41, 40]


def test_virtual_outliers_are_unlikely_in_the_directions_where_the_class_spreads(monkeypatch):
    method = filled(network(), monkeypatch)
    outliers = method.virtual_outliers()
    means = method.queue.mean(dim=1)
    centred = (method.queue - means.unsqueeze(1)).flatten(0, 1)
    precision = (centred.T @ centred / len(centred) + 1e-4 * torch.eye(5)).inverse()

    def distance(points: torch.Tensor, label: int) -> torch.Tensor:
        apart = points - means[label]
        return (apart @ precision * apart).sum(dim=1)

    for label in range(3):
        own = distance(method.queue[label], label)
        virtual = distance(outliers[label : label + 1], label).item()
        # the longest of 10,000 chi-square variables of 5 degrees of freedom
        assert virtual > own.max() and 18 < virtual < 50


def test_vos_trains_the_head_once_it_is_due(monkeypatch):
    body = network()
    head, method = body.head, filled(body, monkeypatch)
    features = torch.randn(4, 5)
    early = method(step(features=features, logits=head(features), progress=0.3))
    assert early.item() == 0
    late = method(step(features=features, logits=head(features), progress=0.4))
    late.backward()
    assert late.item() > 0 and head.weight.grad.abs().sum() > 0
    assert "head" not in " ".join(method.state_dict())


def test_vos_energy_with_equal_weights_is_the_energy(monkeypatch):
    method = VOS(network(), SETTINGS)
    method.class_weights.data.fill_(1.0)
    assert torch.allclose(method._energy(step().logits), energy(step().logits))
