"""LEDITS: edit-friendly DDPM inversion, and SEGA's guidance on the way back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sona_pipeline.generation.ways.base import Way, in_groups
from sona_pipeline.generation.ways.trajectory import Level, levels, lower, predicted_noise
from sona_pipeline.pipelines.guidance import add_momentum, sona_guidance

if TYPE_CHECKING:
    from sona_pipeline.generation.make import OutlierMaker, Work

SOURCE_SCALE, TARGET_SCALE, CONCEPT_SCALE = 3.5, 15.0, 5.0
"""Of classifier-free guidance on the way up and down, and of the concept that is removed."""
REGION, MOMENTUM, BETA, WARM_UP = 0.05, 0.5, 0.6, 1
"""SEGA's: share of the entries that a concept acts on, its momentum, and steps at the start that it leaves out."""


class LEdits(Way):
    """LEDITS (Tsaban & Passos 2023), with the inversion of Huberman-Spiegelglas et al. (2024).

    The source is noised to every level on its own. What DDPM would have had to add from one level to the next is kept,
    and added again on the way down, where the OOD prompt guides and the ID meaning is removed as a concept of SEGA. The
    level that the way down begins at is the stop step; the paper has 64 of 100.
    """

    needs_unet = True
    takes_embeddings = True

    @classmethod
    def rows(cls, stop_step: int, steps: int) -> int:
        """Two a step of the inversion, and three of the edit."""
        return 5 * stop_step

    def __call__(self, maker: OutlierMaker, work: Work) -> torch.Tensor:
        """Images of one stop step together."""
        found = maker.prompts(maker.prompts_of(work.items)[0]), maker.meanings_of(work.items), maker.prompts([""])
        id_prompts, ood_prompts, empty = (conditions["prompt_embeds"] for conditions in found)
        all_levels = levels(self.pipe, self.settings.num_inference_steps)

        def edit(stop_step: int, members: list[int]) -> torch.Tensor:
            source = work.source_latents[members]
            path = all_levels[-stop_step:]
            generators = [work.generators[k] for k in members]
            noise = torch.stack([torch.randn(stop_step, *source.shape[1:], generator=g) for g in generators], dim=1)
            prompts = empty.expand_as(id_prompts[members]), id_prompts[members], ood_prompts[members]
            noised = [
                level.signal**0.5 * source + (1 - level.signal) ** 0.5 * one
                for level, one in zip(path, noise.to(source))
            ]
            return self._edited(noised, source, path, *prompts)

        return in_groups(work, [item.stop_step for item in work.items], edit)

    def _edited(
        self,
        noised: list[torch.Tensor],
        source: torch.Tensor,
        path: list[Level],
        empty: torch.Tensor,
        id_prompt: torch.Tensor,
        ood_prompt: torch.Tensor,
    ) -> torch.Tensor:
        latents, momentum = noised[0], torch.zeros_like(source)
        for k, (level, kept) in enumerate(zip(path, [*noised[1:], source])):
            plain, own = predicted_noise(self.pipe, noised[k], level, (empty, id_prompt))
            added = kept - lower(noised[k], plain + SOURCE_SCALE * (own - plain), level, eta=1.0)
            plain, own, target = predicted_noise(self.pipe, latents, level, (empty, id_prompt, ood_prompt))
            concept, momentum = self._removed(plain, own, momentum)
            guided = plain + TARGET_SCALE * (target - plain) + CONCEPT_SCALE * (k >= WARM_UP) * concept
            latents = lower(latents, guided, level, eta=1.0) + added
        return latents

    def _removed(
        self, plain: torch.Tensor, own: torch.Tensor, momentum: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """SEGA's term of the ID meaning, in the entries where it is strongest, and its momentum in all."""
        found = sona_guidance(
            plain, own, own, mask_threshold=REGION, preserve_id_nuisance=False, add_ood_semantics=False
        )
        return add_momentum(found.guidance, momentum, torch.ones_like(momentum), scale=MOMENTUM, beta=BETA)
