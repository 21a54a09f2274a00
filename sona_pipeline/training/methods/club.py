"""CLUB: an upper bound of the mutual information of two feature vectors, from samples of pairs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

LOG_VARIANCE_LIMIT = 6.0
LEARNING_RATE, BASE_WIDTH = 1e-3, 128
"""Of q's optimizer; the rate is that of features up to this width."""


class Gaussian(nn.Module):
    """q(y | x): mean and log-variance `[N, D]` of y given x `[N, D]`, by a network of one hidden layer each."""

    def __init__(self, width: int):
        super().__init__()
        self.mean = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.log_variance = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log-variance `[B, D]` of q(y|x) for x `[B, D]`."""
        limit = LOG_VARIANCE_LIMIT
        return self.mean(x), limit * torch.tanh(self.log_variance(x) / limit)


class Club(nn.Module):
    """Contrastive log-ratio upper bound of mutual information (Cheng et al. 2020), with a Gaussian q(y | x).

    q is fitted to pairs by likelihood (`forward`). With the true conditional distribution, `bound` is never below
    I(x; y). All of it is computed in float32.

    Args:
        width: D, number of features of x and of y.
    """

    def __init__(self, width: int):
        super().__init__()
        self.q = Gaussian(width)
        self.learning_rate = LEARNING_RATE * min(1.0, BASE_WIDTH / width)

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam for q.

        A step of Adam changes what a layer gives by its rate times its width. So the rate of wide features is divided
        by their width (Yang et al. 2022): q is fitted as fast at any width, where else it learns a batch by heart.
        """
        return torch.optim.Adam(self.parameters(), self.learning_rate)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Mean negative log-likelihood of y `[N, D]` given x `[N, D]`, without its constant: what q is fitted by."""
        with torch.autocast(x.device.type, enabled=False):
            mean, log_variance = self.q(x.float())
            return 0.5 * ((y.float() - mean).square() * (-log_variance).exp() + log_variance).sum(dim=1).mean()

    def bound(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """E_p(x,y) log q(y|x) - E_p(x) E_p(y) log q(y|x), over all N^2 combinations of N pairs, in nats.

        The double sum needs no loop: mean_j (y_j - mu)^2 = (mean y - mu)^2 + var y. It is an estimate, and can come out
        below zero. Its gradient reaches x and y, and not q.

        Args:
            x, y: features `[N, D]`, a pair in each row.
        """
        with torch.autocast(x.device.type, enabled=False):
            x, y = x.float(), y.float()
            fixed = {name: value.detach() for name, value in self.q.named_parameters()}
            mean, log_variance = torch.func.functional_call(self.q, fixed, (x,))
            apart = (y.mean(dim=0) - mean).square() + y.var(dim=0, correction=0)
            return 0.5 * ((apart - (y - mean).square()) * (-log_variance).exp()).sum(dim=1).mean()


def standardized(features: torch.Tensor) -> torch.Tensor:
    """Features `[N, D]` brought to mean 0 and variance 1 over the batch, one by one, in float32.

    Mutual information does not change by this, and cannot be brought down by merely making features smaller.
    """
    with torch.autocast(features.device.type, enabled=False):
        return F.batch_norm(features.float(), None, None, training=True)
