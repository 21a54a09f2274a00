"""The masks of the guidance, by argsort as in the package, by topk, by kthvalue and by quantile."""

import torch
from timing import SEED, Comparison, Ratio, rounds_in_turn

from sona_pipeline.pipelines.guidance import region_masks

SHAPE = (8, 4, 64, 64)
"""Eight images, in latents of Stable Diffusion at 512 pixels."""
THRESHOLD = 0.2
CALLS = 20
"""Calls a round: one takes milliseconds."""

Masks = tuple[torch.Tensor, torch.Tensor]


def by_argsort(psi: torch.Tensor, threshold: float) -> Masks:
    """What the pipeline does: whole numbers of entries, even where magnitudes are equal."""
    return region_masks(psi, threshold, "channel")


def by_topk(psi: torch.Tensor, threshold: float) -> Masks:
    """The same from the indices of the largest and the smallest entries."""
    flat, count = _magnitudes(psi, threshold)
    indices = flat.topk(count, sorted=False).indices, flat.topk(count, largest=False, sorted=False).indices
    return tuple(torch.zeros_like(flat, dtype=torch.bool).scatter_(-1, k, True).view_as(psi) for k in indices)


def by_kthvalue(psi: torch.Tensor, threshold: float) -> Masks:
    """Entries from the k-th largest and up to the k-th smallest value: more of them where magnitudes are equal."""
    flat, count = _magnitudes(psi, threshold)
    least = flat.kthvalue(flat.shape[-1] - count + 1, dim=-1, keepdim=True).values
    most = flat.kthvalue(count, dim=-1, keepdim=True).values
    return (flat >= least).view_as(psi), (flat <= most).view_as(psi)


def by_quantile(psi: torch.Tensor, threshold: float) -> Masks:
    """As by the k-th value; the levels lie between two entries, and no rounding moves them to another one."""
    flat, count = _magnitudes(psi, threshold)
    level = (count - 0.5) / (flat.shape[-1] - 1)
    least = flat.quantile(1 - level, dim=-1, keepdim=True, interpolation="higher")
    most = flat.quantile(level, dim=-1, keepdim=True, interpolation="lower")
    return (flat >= least).view_as(psi), (flat <= most).view_as(psi)


ROUTES = {"argsort": by_argsort, "topk": by_topk, "kthvalue": by_kthvalue, "quantile": by_quantile}


def compare(rounds: int) -> list[Comparison]:
    """All routes, after a check that they give the same masks."""
    psi = without_ties(SHAPE)
    check_agreement(psi, THRESHOLD)
    things = {name: lambda route=route: [route(psi, THRESHOLD) for _ in range(CALLS)] for name, route in ROUTES.items()}
    counts = {"images": SHAPE[0], "channels": SHAPE[1], "side": SHAPE[2], "calls": CALLS}
    ratios = tuple(Ratio(name, "argsort") for name in ROUTES if name != "argsort")
    title = "both masks of each channel"
    return [Comparison(title, counts, CALLS, "calls", rounds_in_turn(things, rounds), ratios)]


def without_ties(shape: tuple[int, int, int, int]) -> torch.Tensor:
    """Random values, of which no two of a channel have the same magnitude."""
    generator = torch.Generator().manual_seed(SEED)
    ranks = torch.rand(*shape[:2], shape[2] * shape[3], generator=generator).argsort(dim=-1) + 1.0
    signs = torch.randint(0, 2, ranks.shape, generator=generator) * 2 - 1
    return (signs * ranks / ranks.shape[-1]).view(shape)


def check_agreement(psi: torch.Tensor, threshold: float) -> None:
    """Raise ValueError unless all routes give the same masks."""
    expected = by_argsort(psi, threshold)
    for name, route in ROUTES.items():
        if not all(map(torch.equal, route(psi, threshold), expected)):
            raise ValueError(f"the masks by {name} are others than those by argsort")


def _magnitudes(psi: torch.Tensor, threshold: float) -> tuple[torch.Tensor, int]:
    """|psi| `[B, C, H x W]`, and how many entries of a channel a mask holds."""
    flat = psi.abs().flatten(2)
    return flat, min(max(1, round(threshold * flat.shape[-1])), flat.shape[-1] // 2)
