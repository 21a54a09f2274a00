"""OpenGAN (Kong & Ramanan 2021): a discriminator of features of training images and features that a GAN makes up."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from sona_pipeline.evaluation.metrics import ood_metrics
from sona_pipeline.evaluation.posthoc.base import Known, Labelled, Method, Scorer

NOISE, BATCH = 100, 128
RATE, SLOWER, BETAS = 1e-4, 1.5, (0.5, 0.999)
"""Adam's learning rate, by what it is divided for the discriminator, and its betas, as in OpenOOD."""


def generator(width: int) -> nn.Sequential:
    """From noise `[B, 100]` to features `[B, width]`."""
    sizes = (NOISE, width, width // 2, width // 4, width // 2)
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU(inplace=True)]
    return _initialized([*layers, nn.Linear(sizes[-1], width)])


def discriminator(width: int) -> nn.Sequential:
    """From features `[B, width]` to a logit `[B, 1]`, high for those of training images."""
    sizes = (width, width, width // 2, width // 4, width // 8)
    layers: list[nn.Module] = [nn.Linear(width, width, bias=False), nn.LeakyReLU(0.2, inplace=True)]
    for a, b in pairwise(sizes[1:]):
        layers += [nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.LeakyReLU(0.2, inplace=True)]
    return _initialized([*layers, nn.Linear(sizes[-1], 1, bias=False)])


def _initialized(layers: Sequence[nn.Module]) -> nn.Sequential:
    network = nn.Sequential(*layers)
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.02)
        elif isinstance(module, nn.BatchNorm1d):
            nn.init.normal_(module.weight, 1, 0.02)
    return network


def fit(known: Known, epochs: int = 100, keep_best: bool = True) -> Scorer:
    """Score: the logit of not being a training image's feature, by the discriminator of one epoch.

    A discriminator soon rates all features of real images alike, so the epoch matters. The paper and OpenOOD choose it
    by OOD images. Here it is that of the highest AUROC of the validation images against midpoints between features of
    theirs that the network takes for different classes; no OOD image has a part in it.

    Args:
        known: see `Known`.
        epochs: passes over the training features, by Adam, in batches of 128.
        keep_best: whether the epoch is chosen; the last one is kept otherwise.
    """
    features = known.training.features
    device, width = features.device, features.shape[1]
    players = generator(width).to(device), discriminator(width).to(device)
    optimizers = [torch.optim.Adam(p.parameters(), r, BETAS) for p, r in zip(players, (RATE, RATE / SLOWER))]
    between = midpoints(known.validation)
    best, highest = players[1].state_dict(), -1.0
    for _ in range(epochs):
        with torch.enable_grad():
            _train_epoch(players, optimizers, features)
        auroc = _auroc(players[1], known.validation.features, between) if keep_best and len(between) else highest
        if auroc >= highest:
            highest = auroc
            best = {name: value.clone() for name, value in players[1].state_dict().items()}
    judge = players[1].eval()
    judge.load_state_dict(best)
    return lambda seen: -judge(seen.features).squeeze(1)


def midpoints(known: Labelled) -> torch.Tensor:
    """Halfway between the feature of each image and that of another one, drawn at random, of another class."""
    predicted = known.logits.argmax(dim=1)
    other = torch.randperm(len(predicted), generator=torch.Generator().manual_seed(0)).to(predicted.device)
    differ = predicted != predicted[other]
    return ((known.features + known.features[other]) / 2)[differ]


def _train_epoch(
    players: tuple[nn.Module, nn.Module], optimizers: Sequence[torch.optim.Optimizer], features: torch.Tensor
) -> None:
    maker, judge = (player.train() for player in players)
    for real in features[torch.randperm(len(features), device=features.device)].split(BATCH):
        if len(real) < 2:
            continue  # there is no batch normalization of one row
        fake = maker(torch.randn(len(real), NOISE, device=real.device))
        said = judge(real), judge(fake.detach())
        loss = _cross_entropy(said[0], 1.0) + _cross_entropy(said[1], 0.0)
        _step(optimizers[1], loss)
        _step(optimizers[0], _cross_entropy(judge(fake), 1.0))


def _cross_entropy(logits: torch.Tensor, label: float) -> torch.Tensor:
    return binary_cross_entropy_with_logits(logits, torch.full_like(logits, label))


def _step(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@torch.no_grad()
def _auroc(judge: nn.Module, known: torch.Tensor, unknown: torch.Tensor) -> float:
    judge.eval()
    return ood_metrics(*(-judge(some).squeeze(1).cpu().double().numpy() for some in (known, unknown)))["auroc"]


METHOD = Method(fit, {"epochs": (5, 10, 20, 50, 100), "keep_best": (False,)})
