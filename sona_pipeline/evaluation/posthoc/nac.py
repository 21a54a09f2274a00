"""NAC-UE (Liu et al. 2024): neurons in a state, activation times gradient, that training images had, too."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from sona_pipeline.evaluation.posthoc.base import Known, Method, Scorer, Seen, pytorch_ood


class Watched:
    """The training images of what is known, of which gradients are taken; again and again."""

    def __init__(self, known: Known):
        self.known = known

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for seen, labels in self.known.training_images():
            yield seen.pixels.detach().requires_grad_(), labels


def fit(known: Known, bins: int = 50, steepness: float = 100.0, full: int = 50) -> Scorer:
    """Summed over the stages of the network after its stem.

    Args:
        known: see `Known`.
        bins: that states are counted in.
        steepness: of the sigmoid that brings them between 0 and 1.
        full: training images in a bin from which on it counts as covered.

    Raises:
        ValueError: the stages of the network are not known.
    """
    _, *stages = known.detector.network.stages()
    method = pytorch_ood().NACUE(known.detector, stages, bins, steepness, full)
    with torch.enable_grad():
        method.fit(Watched(known))

    def score(seen: Seen) -> torch.Tensor:
        with torch.enable_grad():
            return method.predict(seen.pixels.detach().requires_grad_())

    return score


METHOD = Method(fit, {"steepness": (1.0, 10.0, 100.0, 1000.0)}, needs_images=True)
