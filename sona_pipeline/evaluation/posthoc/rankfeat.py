"""RankFeat (Song et al. 2022): energy without the strongest component of the feature maps; nothing is fitted."""

from __future__ import annotations

import torch

from sona_pipeline.evaluation.posthoc.base import Known, Method, Scorer, Seen, energy, stages


def without_first(maps: torch.Tensor) -> torch.Tensor:
    """Feature maps `[B, C, H, W]` less their first singular component as matrices `[C, HW]`."""
    left, values, right = torch.linalg.svd(maps.flatten(2), full_matrices=False)
    first = left[:, :, :1] * values[:, None, :1] @ right[:, :1]
    return maps - first.reshape(maps.shape)


@torch.no_grad()
def fit(known: Known) -> Scorer:
    """The mean of two logits is scored: without the component of the last stage, and of the one before it."""
    *front, last = stages(known.detector)
    network = known.detector.network

    @torch.no_grad()
    def score(seen: Seen) -> torch.Tensor:
        maps = torch.nn.Sequential(*front)(seen.pixels)
        pooled = [end.mean(dim=(2, 3)) for end in (without_first(last(maps)), last(without_first(maps)))]
        return energy(sum(network.head(network.scaled(maps)) / 2 for maps in pooled))

    return score


METHOD = Method(fit, needs_images=True)
