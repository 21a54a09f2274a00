"""The edge of a set of features, and points outside of it: non-parametric outlier synthesis (Tao et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Edge:
    """How points outside are drawn.

    Attributes:
        neighbours: k of the k-th neighbour that distances are taken to.
        size: how many features with the largest distance make the edge.
        picked: how many of these points are drawn around; None for all.
        drawn: points around each.
        kept: how many of the points around each are kept, the farthest.
        spread: standard deviation of the points.
    """

    neighbours: int
    size: int
    picked: int | None
    drawn: int
    kept: int
    spread: float


@torch.no_grad()
def drawn_outside(known: torch.Tensor, edge: Edge) -> torch.Tensor:
    """Points `[N, D]` around the edge of features `[K, D]`, those farthest from them.

    Distances are between directions, to the k-th neighbour, or the last one if there are fewer.
    """
    order = distances(known, known, edge.neighbours).topk(min(edge.size, len(known))).indices
    if edge.picked is not None:
        order = order[torch.randperm(len(order), device=order.device)[: edge.picked]]
    return torch.cat([_farthest(known[place], known, edge) for place in order])


def _farthest(center: torch.Tensor, known: torch.Tensor, edge: Edge) -> torch.Tensor:
    points = center + edge.spread * torch.randn(edge.drawn, len(center), device=center.device, dtype=center.dtype)
    return points[distances(points, known, edge.neighbours).topk(edge.kept).indices]


def distances(points: torch.Tensor, known: torch.Tensor, neighbours: int) -> torch.Tensor:
    """Distance `[N]` of the directions of points `[N, D]` to that of their k-th neighbour among `[K, D]`."""
    cosines = F.normalize(points, dim=1) @ F.normalize(known, dim=1).T
    kth = _ascending(cosines, len(known) - min(neighbours, len(known)))
    return (2 - 2 * kth).clamp(min=0).sqrt()


def _ascending(values: torch.Tensor, place: int) -> torch.Tensor:
    """The value `[N]` at a place from 0 on of each row `[N, K]`, if it were in ascending order."""
    if values.device.type == "cpu":  # where NumPy is several times faster
        return torch.from_numpy(np.partition(values.numpy(), place, axis=1)[:, place])
    return values.kthvalue(place + 1, dim=1).values
