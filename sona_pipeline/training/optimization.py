"""Optimizers and schedules of the learning rate, as `settings.OPTIMIZERS` and `settings.SCHEDULES` name them."""

from functools import partial

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

nesterov_sgd = partial(torch.optim.SGD, momentum=0.9, nesterov=True)


def cosine(optimizer: torch.optim.Optimizer, rate: float, steps: int) -> LRScheduler:
    """Half a cosine from `rate` to 0."""
    return CosineAnnealingLR(optimizer, steps)


def one_cycle(optimizer: torch.optim.Optimizer, rate: float, steps: int) -> LRScheduler:
    """Up to `rate` in the first 15 % of the steps, then down to nearly 0."""
    return OneCycleLR(optimizer, rate, steps, pct_start=0.15)
