import math

import pytest
import torch
from torch import nn

from sona_pipeline.training.methods.club import Club, standardized


def gaussian_pairs(count: int, rho: float, width: int = 1, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Standard normal x and y `[N, D]` with correlation rho in each column: I(x; y) = -D/2 log(1 - rho^2)."""
    generator = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(2, count, width, generator=generator)
    return x, rho * x + math.sqrt(1 - rho**2) * noise


def fitted(x: torch.Tensor, y: torch.Tensor, steps: int = 400) -> Club:
    torch.manual_seed(0)
    club = Club(x.shape[1])
    optimizer = torch.optim.Adam(club.parameters(), 1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        club(x, y).backward()
        optimizer.step()
    return club


def test_bound_is_the_double_loop_of_the_paper():
    torch.manual_seed(1)
    club, (x, y) = Club(3), torch.randn(2, 6, 3)
    mean, log_variance = club.q(x)
    density = torch.distributions.Normal(mean, (log_variance / 2).exp())

    def log_q(i: int, j: int) -> float:
        """log q(y_j | x_i)"""
        return density.log_prob(y[j].expand(6, 3))[i].sum().item()

    joint = sum(log_q(i, i) for i in range(6)) / 6
    apart = sum(log_q(i, j) for i in range(6) for j in range(6)) / 36
    assert club.bound(x, y).item() == pytest.approx(joint - apart, rel=1e-4)


def test_fitting_is_by_likelihood():
    torch.manual_seed(1)
    club, (x, y) = Club(3), torch.randn(2, 6, 3)
    mean, log_variance = club.q(x)
    likelihood = torch.distributions.Normal(mean, (log_variance / 2).exp()).log_prob(y).sum(dim=1).mean().item()
    constant = 1.5 * math.log(2 * math.pi)
    assert club(x, y).item() == pytest.approx(-likelihood - constant, rel=1e-4)


def test_bound_lies_above_the_information_of_gaussians_and_keeps_its_order():
    bounds = {}
    for rho in (0.0, 0.3, 0.6, 0.9):
        x, y = gaussian_pairs(2000, rho, width=4)
        bounds[rho] = fitted(x, y).bound(*gaussian_pairs(2000, rho, width=4, seed=1)).item()
        assert bounds[rho] > -2 * math.log(1 - rho**2) - 0.1
    assert bounds[0.0] == pytest.approx(0, abs=0.1)
    # With the true conditional distribution the bound is D rho^2 / (1 - rho^2).
    assert bounds[0.6] == pytest.approx(4 * 0.36 / 0.64, rel=0.15)
    assert sorted(bounds.values()) == list(bounds.values())


def test_minimizing_the_bound_makes_pairs_independent():
    """A linear map of y = (signal, noise) learns to leave out the signal that x knows."""
    x, y = gaussian_pairs(1000, 0.95, width=2)
    y = torch.stack([y[:, 0], torch.randn(1000, generator=torch.Generator().manual_seed(5))], dim=1)
    torch.manual_seed(0)
    club, weights = Club(2), nn.Parameter(torch.tensor([[1.0, 0.2], [0.8, 0.5]]))
    fit, learn = torch.optim.Adam(club.parameters(), 1e-2), torch.optim.Adam([weights], 1e-2)
    bounds = []
    for _ in range(300):
        features = standardized(y @ weights.T)
        for _ in range(3):
            fit.zero_grad()
            club(x, features.detach()).backward()
            fit.step()
        bound = club.bound(x, features).clamp(min=0)
        learn.zero_grad()
        bound.backward()
        learn.step()
        bounds.append(bound.item())
    correlation = torch.corrcoef(torch.stack([x[:, 0], (y @ weights.T)[:, 0]]).detach())[0, 1]
    assert bounds[30] > 1 and bounds[-1] < 0.2
    assert abs(correlation) < 0.25


def test_gradients_reach_the_features_and_not_q():
    torch.manual_seed(2)
    club = Club(2)
    x, y = torch.randn(2, 5, 2)
    x.requires_grad_()
    y.requires_grad_()
    club.bound(x, y).backward()
    assert all(parameter.grad is None for parameter in club.parameters())
    for features, other in ((x, 0), (y, 1)):
        step = torch.zeros_like(features)
        step[3, 1] = 1e-2
        pair = [x.detach(), y.detach()]
        moved = [[*pair], [*pair]]
        moved[0][other], moved[1][other] = pair[other] + step, pair[other] - step
        slope = (club.bound(*moved[0]) - club.bound(*moved[1])).item() / 2e-2
        assert features.grad[3, 1].item() == pytest.approx(slope, rel=0.02, abs=1e-4)


def test_half_precision_features_are_computed_with_in_float32():
    torch.manual_seed(3)
    club, (x, y) = Club(4), torch.randn(2, 64, 4).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        inside = club.bound(x, y), club(x, y), standardized(x)
    assert [value.dtype for value in inside] == [torch.float32] * 3
    assert torch.equal(inside[0], club.bound(x.float(), y.float()))


def test_standardized_features_do_not_depend_on_scale():
    features = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) + 4
    once, scaled = standardized(features), standardized(10 * features - 7)
    assert torch.allclose(once, scaled, atol=1e-4)
    assert torch.allclose(once.mean(dim=0), torch.zeros(3), atol=1e-5)
    assert torch.allclose(once.var(dim=0, correction=0), torch.ones(3), atol=1e-3)


@pytest.mark.parametrize("width", [32, 128, 640, 1280])
def test_wide_features_are_not_learned_by_heart(width):
    """Five steps on a batch of independent pairs find as little of information in wide features as in narrow ones."""
    x, y = gaussian_pairs(64, 0.0, width)
    torch.manual_seed(0)
    club = Club(width)
    optimizer = club.optimizer()
    for _ in range(5):
        optimizer.zero_grad()
        club(x, y).backward()
        optimizer.step()
    assert 0 < club.bound(x, y).item() / width < 0.15
