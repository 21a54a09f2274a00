"""Sum over stem and stages of the Mahalanobis distances of their mean activations (Lee et al. 2018)."""

from __future__ import annotations

import torch

from sona_pipeline.evaluation.posthoc.base import Known, Method, Scorer, Seen, pytorch_ood, stages
from sona_pipeline.evaluation.posthoc.precision import double_precision


def stage_means(parts: list[torch.nn.Module], seen: Seen) -> list[torch.Tensor]:
    """Mean activations `[B, D]` of each stage, in double precision."""
    maps, means = seen.pixels, []
    for part in parts:
        maps = part(maps)
        means.append(maps.mean(dim=(2, 3)).double())
    return means


@torch.no_grad()
def fit(known: Known) -> Scorer:
    """Each stage counts once, and images are not moved."""
    parts = stages(known.detector)
    batches = [(stage_means(parts, seen), labels) for seen, labels in known.training_images()]
    means, labels = zip(*batches)
    with double_precision():
        method = pytorch_ood().MultiMahalanobis(parts)
        method.fit_structured([torch.cat(stage) for stage in zip(*means)], torch.cat(labels))
    return lambda seen: method.predict_structured(stage_means(parts, seen))


METHOD = Method(fit, needs_images=True)
