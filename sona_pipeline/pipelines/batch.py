"""What a call keeps of its images from step to step, and what it does with them besides the guidance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback

from sona_pipeline.pipelines.arguments import Generators
from sona_pipeline.pipelines.guidance import SONAGuidance, add_momentum

Conditions = dict[str, torch.Tensor]
"""What prompts become for a denoiser, by name: tensors of which the first sides are prompts and images."""


class Step(NamedTuple):
    """One call of the denoiser: step of the full schedule, time step, images that take part, and `noise_units`."""

    number: int
    t: torch.Tensor
    active: slice
    noise_unit: float


class Batch:
    """What a call keeps of each image, sorted by falling stop step: those being denoised always come first."""

    def __init__(self, latents: torch.Tensor, conditions: Conditions, joins: list[int], generator: Generators):
        order = sorted(range(len(joins)), key=joins.__getitem__)
        self.order = torch.tensor(order, device=latents.device)
        self.joins = [joins[k] for k in order]
        self.generator = [generator[k] for k in order] if isinstance(generator, list) else generator
        self.latents = latents[self.order]
        self.conditions = {name: value[:, order] for name, value in conditions.items()}
        self._first_bad_step = torch.full((len(order),), -1, device=latents.device)

    def in_caller_order(self, value: torch.Tensor, active: slice = slice(None)) -> torch.Tensor:
        """Values of all images, or of the active ones with zeros for the others, in the order of the input images."""
        if len(value) == len(self.order):
            active = slice(None)
        restored = value.new_zeros(len(self.order), *value.shape[1:])
        restored[self.order[active]] = value
        return restored

    def take(self, active: slice) -> tuple[torch.Tensor, Conditions, Generators]:
        """Latents, conditions and generators of the active images."""
        generator = self.generator[active] if isinstance(self.generator, list) else self.generator
        latents = self.latents[active].clone()  # some schedulers keep it for their next step
        return latents, {name: value[:, active] for name, value in self.conditions.items()}, generator

    def put(self, latents: torch.Tensor, step: Step) -> None:
        """Replace the latents of the active images; note, on the device, the first step that leaves one not finite."""
        self.latents[step.active] = latents
        bad = ~self.latents[step.active].isfinite().flatten(1).all(dim=1) & (self._first_bad_step[step.active] < 0)
        self._first_bad_step[step.active] = self._first_bad_step[step.active].masked_fill(bad, step.number)

    def raise_if_bad(self) -> None:
        """Raise FloatingPointError for the first image whose latents stopped being finite."""
        steps = self.in_caller_order(self._first_bad_step).tolist()
        for k, step in enumerate(steps):
            if step >= 0:
                raise FloatingPointError(
                    f"The latents of image {k} became NaN or infinite at step {step}: try bfloat16 or float32, or a"
                    " lower `guidance_scale`."
                )


class Callback:
    """The caller's `callback_on_step_end`, if there is one, and the names of the tensors that it asks for."""

    def __init__(self, function: Callable[..., dict] | None, names: Sequence[str]):
        self.function, self.names = function, names
        if function is not None and not callable(function):
            raise TypeError(f"`callback_on_step_end` is {function!r}, but has to be a function.")
        if isinstance(function, (PipelineCallback, MultiPipelineCallbacks)):
            self.names = function.tensor_inputs

    def __call__(self, pipe: Any, step: Step, batch: Batch, found: SONAGuidance, noise_pred: torch.Tensor) -> None:
        """Hand over the tensors in the order of the input images, and take the latents that come back."""
        if self.function is None:
            return
        tensors = {**found._asdict(), "guidance": found.guidance * step.noise_unit, "noise_pred": noise_pred}
        tensors["latents"] = batch.latents
        asked = {name: batch.in_caller_order(tensors[name], step.active) for name in self.names}
        replaced = self.function(pipe, step.number, step.t, asked) or {}
        if "latents" in replaced:
            batch.latents = replaced["latents"][batch.order].to(batch.latents)


class Sega:
    """SEGA's options (Brack et al. 2023): steps of the full schedule without guidance, and momentum in noise units."""

    def __init__(self, warmup_steps: int, cooldown_steps: int | None, scale: float, beta: float, like: torch.Tensor):
        self.warmup_steps, self.cooldown_steps, self.scale, self.beta = warmup_steps, cooldown_steps, scale, beta
        self.momentum = torch.zeros_like(like, dtype=torch.float32) if scale else None

    def __call__(self, found: SONAGuidance, step: Step) -> SONAGuidance:
        """Guidance of the active images at a step of the full schedule; momentum builds up in the warm-up, too."""
        guidance = found.guidance
        if self.momentum is not None:
            anywhere = found.id_semantic_mask | found.id_nuisance_mask | found.ood_semantic_mask
            moved, self.momentum[step.active] = add_momentum(
                guidance * step.noise_unit, self.momentum[step.active], anywhere, scale=self.scale, beta=self.beta
            )
            guidance = (moved / step.noise_unit).to(guidance.dtype)
        is_on = is_guided(step.number, self.warmup_steps, self.cooldown_steps)
        return found._replace(guidance=guidance if is_on else torch.zeros_like(guidance))


def is_guided(number: int, warmup_steps: int, cooldown_steps: int | None) -> bool:
    """Whether there is guidance at a step of the full schedule."""
    return warmup_steps <= number and (cooldown_steps is None or number < cooldown_steps)
