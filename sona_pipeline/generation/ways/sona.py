"""SONA itself, and global guidance by the same plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from sona_pipeline.generation.ways.base import Way

if TYPE_CHECKING:
    from sona_pipeline.generation.make import OutlierMaker, Work


class Sona(Way):
    """Guidance by regions: algorithm 2 of the paper."""

    takes_embeddings = True
    options: dict[str, Any] = {}

    @classmethod
    def rows(cls, stop_step: int, steps: int) -> int:
        """Three a step."""
        return 3 * stop_step

    def __call__(self, maker: OutlierMaker, work: Work) -> torch.Tensor:
        """One call of the pipeline."""
        return maker.denoised(work.items, work.source_latents, work.generators, **self.options)


class Global(Sona):
    """Guidance everywhere, eps(z) + s psi(OOD): the baseline of figure 6."""

    options = {"global_guidance": True}
