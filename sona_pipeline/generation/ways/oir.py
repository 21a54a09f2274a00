"""OIR: the inversion depth at which an edit has the new meaning and leaves the rest."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from sona_pipeline.generation.ways.base import Way
from sona_pipeline.generation.ways.trajectory import higher, levels, lower, predicted_noise
from sona_pipeline.pipelines.guidance import sona_guidance

if TYPE_CHECKING:
    from sona_pipeline.generation.make import OutlierMaker, Work

SCALE, DEPTHS, OBJECT = 7.5, 10, 0.4
"""Of classifier-free guidance; depths that are tried; share of the places that is taken for the object."""
PROBES, PROBED = 4, 0.5
"""Noises that a meaning is probed with, and how far up the schedule."""


class Prompts(NamedTuple):
    """Embeddings `[B, L, D]` of the empty, the ID and the OOD prompt."""

    empty: torch.Tensor
    own: torch.Tensor
    other: torch.Tensor


class OIR(Way):
    """Object-aware inversion (Yang et al. 2024): its search for the depth of one object.

    The source is inverted by DDIM to every depth. From each of ten it is denoised by the OOD prompt. The depth is
    chosen that has the highest sum of two scores, each scaled to [0, 1] over the depths: how much the object looks like
    the OOD prompt, and how little the rest has changed. The paper asks CLIP for the first, within a mask by SAM. Here
    the diffusion model itself is asked, by how much better it predicts noise with the prompt than without, and the
    object is where the ID prompt has most say.
    """

    needs_unet = True
    uses_stop_step = False
    takes_embeddings = True

    @classmethod
    def rows(cls, stop_step: int, steps: int) -> int:
        """One a step up and for the object two, two a step down from each depth, and two for each probe."""
        return steps + 2 + sum(2 * depth + 2 * PROBES for depth in cls._depths(steps))

    @staticmethod
    def _depths(steps: int) -> list[int]:
        return sorted({max(1, round(steps * k / DEPTHS)) for k in range(1, DEPTHS + 1)})

    def __call__(self, maker: OutlierMaker, work: Work) -> torch.Tensor:
        """All images of a batch together; the depth that was chosen becomes their stop step."""
        found = maker.prompts(maker.prompts_of(work.items)[0]), maker.meanings_of(work.items), maker.prompts([""])
        own, other, empty = (conditions["prompt_embeds"] for conditions in found)
        prompts = Prompts(empty.expand_as(own), own, other)
        steps, source = self.settings.num_inference_steps, work.source_latents
        depths = self._depths(steps)
        noise = torch.stack([torch.randn(PROBES, *source.shape[1:], generator=g) for g in work.generators], dim=1)
        inverted = self._inverted(source, prompts, steps)
        mask = self._object(inverted[steps // 2], prompts, steps)
        edits = torch.stack([self._edited(inverted[depth], prompts, depth, steps) for depth in depths])
        likeness = torch.stack([self._likeness(edit, prompts, mask, noise.to(source), steps) for edit in edits])
        changes = ((edits - source).square() * ~mask).flatten(2).mean(dim=2)
        chosen = (_scaled(likeness) + _scaled(-changes)).argmax(dim=0)
        work.items = [replace(item, stop_step=depths[k]) for item, k in zip(work.items, chosen.tolist())]
        return edits[chosen, torch.arange(len(source), device=source.device)]

    def _inverted(self, source: torch.Tensor, prompts: Prompts, steps: int) -> list[torch.Tensor]:
        """Latents after 0, 1, ... `steps` steps up by the ID prompt."""
        found, below = [source], None
        for level in reversed(levels(self.pipe, steps)):
            noise = predicted_noise(self.pipe, found[-1], below or level, [prompts.own])[0]
            found.append(higher(found[-1], noise, level))
            below = level
        return found

    def _object(self, latents: torch.Tensor, prompts: Prompts, steps: int) -> torch.Tensor:
        """Where the ID prompt has most say half-way up, `[B, c, h, w]`, the same for all channels."""
        level = levels(self.pipe, steps)[-max(1, steps // 2)]
        plain, own = predicted_noise(self.pipe, latents, level, prompts[:2])
        found = sona_guidance(plain, own, own, mask_threshold=OBJECT, mask_granularity="spatial")
        return found.id_semantic_mask

    def _edited(self, latents: torch.Tensor, prompts: Prompts, depth: int, steps: int) -> torch.Tensor:
        for level in levels(self.pipe, steps)[-depth:]:
            plain, other = predicted_noise(self.pipe, latents, level, (prompts.empty, prompts.other))
            latents = lower(latents, plain + SCALE * (other - plain), level)
        return latents

    def _likeness(
        self, edit: torch.Tensor, prompts: Prompts, mask: torch.Tensor, noises: torch.Tensor, steps: int
    ) -> torch.Tensor:
        """By how much the OOD prompt lowers the error of the predicted noise within the object, `[B]`."""
        level = levels(self.pipe, steps)[-max(1, round(PROBED * steps))]
        gain = edit.new_zeros(len(edit))
        for noise in noises:
            latents = level.signal**0.5 * edit + (1 - level.signal) ** 0.5 * noise
            plain, other = predicted_noise(self.pipe, latents, level, (prompts.empty, prompts.other))
            gain = gain + (((plain - noise).square() - (other - noise).square()) * mask).flatten(1).mean(dim=1)
        return gain


def _scaled(scores: torch.Tensor) -> torch.Tensor:
    """Scores `[depths, B]` from 0 to 1 over the depths of each image."""
    low, high = scores.amin(dim=0), scores.amax(dim=0)
    return (scores - low) / (high - low).clamp(min=1e-12)
