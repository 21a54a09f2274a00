"""Region-wise guidance as a guider of diffusers."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import BaseGuidance
from diffusers.configuration_utils import register_to_config
from diffusers.guiders.guider_utils import GuiderOutput

from sona_pipeline.pipelines.arguments import check_counts, check_numbers
from sona_pipeline.pipelines.batch import is_guided
from sona_pipeline.pipelines.guidance import check_mask_options, sona_guidance


class SONAGuiderOutput(GuiderOutput):
    """What `SONAGuider` gives, each `[B, C, H, W]`; `guidance` and the masks are those of `sona_guidance`.

    `pred_cond` is the prediction with the ID prompt.
    """

    guidance: torch.Tensor
    id_semantic_mask: torch.Tensor
    id_nuisance_mask: torch.Tensor
    ood_semantic_mask: torch.Tensor
    ood_unfiltered_mask: torch.Tensor


class SONAGuider(BaseGuidance):
    """SONA guidance: pred = pred_uncond + s (D_ID + D_N + D_OOD), of three predictions; see `sona_guidance`.

    Tuples of inputs are in the order of the predictions: for the empty, the ID and the OOD prompt.

    Args:
        guidance_scale: s of (2).
        mask_threshold, mask_granularity, remove_id_semantics, preserve_id_nuisance, add_ood_semantics,
        filter_ood_by_nuisance, global_guidance: see `sona_guidance`.
        warmup_steps: no guidance in the first steps, counted as `set_state` does: here on the full schedule.
        cooldown_steps: no guidance from this step on; None is off.
        enabled: whether there is guidance at all; without it, the prediction is that for the empty prompt.
    """

    _input_predictions = ["pred_uncond", "pred_id", "pred_ood"]

    @register_to_config
    def __init__(
        self,
        guidance_scale: float = 10.0,
        mask_threshold: float = 0.2,
        mask_granularity: str = "channel",
        remove_id_semantics: bool = True,
        preserve_id_nuisance: bool = True,
        add_ood_semantics: bool = True,
        filter_ood_by_nuisance: bool = True,
        global_guidance: bool = False,
        warmup_steps: int = 0,
        cooldown_steps: int | None = None,
        enabled: bool = True,
    ):
        super().__init__(enabled=enabled)
        check_numbers(guidance_scale=guidance_scale)
        check_mask_options(mask_threshold, mask_granularity)
        check_counts(warmup_steps=warmup_steps, cooldown_steps=cooldown_steps)
        self.guidance_scale, self.warmup_steps, self.cooldown_steps = guidance_scale, warmup_steps, cooldown_steps
        self.regions: dict[str, Any] = {
            "mask_threshold": mask_threshold,
            "mask_granularity": mask_granularity,
            "remove_id_semantics": remove_id_semantics,
            "preserve_id_nuisance": preserve_id_nuisance,
            "add_ood_semantics": add_ood_semantics,
            "filter_ood_by_nuisance": filter_ood_by_nuisance,
            "global_guidance": global_guidance,
        }

    @property
    def is_conditional(self) -> bool:
        """Whether the prediction that comes next has a prompt."""
        return self._count_prepared > 1

    @property
    def num_conditions(self) -> int:
        """Predictions that are needed."""
        return len(self._input_predictions)

    def prepare_inputs(self, data: dict[str, Any]) -> list[Any]:
        """A state for each prediction; a tensor is the same for all, and of a tuple each takes its own."""
        return [self._prepare_batch(data, k, name) for k, name in enumerate(self._input_predictions)]

    def prepare_inputs_from_block_state(self, data: Any, input_fields: dict[str, Any]) -> list[Any]:
        """The same, by names in the state of a block."""
        return [
            self._prepare_batch_from_block_state(input_fields, data, k, name)
            for k, name in enumerate(self._input_predictions)
        ]

    def forward(self, pred_uncond: torch.Tensor, pred_id: torch.Tensor, pred_ood: torch.Tensor) -> SONAGuiderOutput:
        """The guided prediction, with guidance and masks."""
        found = sona_guidance(pred_uncond, pred_id, pred_ood, **self.regions)
        is_on = self._enabled and is_guided(self._step or 0, self.warmup_steps, self.cooldown_steps)
        found = found if is_on else found._replace(guidance=torch.zeros_like(found.guidance))
        pred = pred_uncond + self.guidance_scale * found.guidance
        return SONAGuiderOutput(pred=pred, pred_cond=pred_id, pred_uncond=pred_uncond, **found._asdict())
