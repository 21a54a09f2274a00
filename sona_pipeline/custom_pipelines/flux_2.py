# Copyright 2026 The SONA developers.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
#
# Made from sona_pipeline/pipelines by tests/custom_pipelines.py: changes belong there.
"""SONA with FLUX.2 [klein] base."""

import functools
import inspect
import itertools
import json
import math
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import PIL.Image
import torch
from diffusers import (
    AutoencoderKLFlux2,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    Flux2Transformer2DModel,
    PNDMScheduler,
)
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import PipelineImageInput, VaeImageProcessor
from diffusers.loaders import Flux2LoraLoaderMixin
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.utils import USE_PEFT_BACKEND, BaseOutput, logging, scale_lora_layers, unscale_lora_layers
from diffusers.utils.torch_utils import randn_tensor
from torch.nn.functional import pad, pixel_shuffle, pixel_unshuffle
from transformers import Qwen2TokenizerFast, Qwen3ForCausalLM

logger = logging.get_logger(__name__)


Generators = torch.Generator | list[torch.Generator] | None


def check_numbers(**values: float) -> None:
    """Raise ValueError for a value that is no finite number."""
    for name, value in values.items():
        if not isinstance(value, (int, float, np.number)) or not math.isfinite(value):
            raise ValueError(f"`{name}` is {value!r}, but has to be a finite number.")


def check_counts(**values: int | None) -> None:
    """Raise ValueError for a value that is no whole number from 0 on; None is left out."""
    for name, value in values.items():
        if value is not None and (not isinstance(value, (int, np.integer)) or value < 0):
            raise ValueError(f"`{name}` is {value!r}, but has to be a whole number from 0 on.")


def check_steps(num_inference_steps: int, most: int) -> None:
    """Raise ValueError unless a schedule can have so many steps."""
    if not isinstance(num_inference_steps, (int, np.integer)) or not 1 <= num_inference_steps <= most:
        raise ValueError(f"`num_inference_steps` is {num_inference_steps}, but has to be an integer from 1 to {most}.")


def check_output_type(output_type: str) -> None:
    """Raise ValueError for a form in which images cannot be given."""
    if output_type not in ("pil", "np", "pt", "latent"):
        raise ValueError(f"`output_type` is {output_type!r}, but has to be 'pil', 'np', 'pt' or 'latent'.")


def checked_generators(generator: Any, batch_size: int) -> Generators:
    """One generator, or a list with one an image; TypeError or ValueError for anything else."""
    sources = list(generator) if isinstance(generator, (list, tuple)) else generator
    if sources is not None and not all(
        isinstance(one, torch.Generator) for one in (sources if isinstance(sources, list) else [sources])
    ):
        raise TypeError(f"`generator` is {generator!r}, but has to be a `torch.Generator` or one an image.")
    if isinstance(sources, list) and len(sources) != batch_size:
        raise ValueError(f"`generator` has {len(sources)} entries for {batch_size} images: give one, or one an image.")
    return sources


def step_of_strength(strength: float, num_inference_steps: int) -> int:
    """The stop step of a strength, rounded down as img2img does; ValueError if it is less than one."""
    if not isinstance(strength, (int, float, np.number)) or not 0 < strength <= 1:
        raise ValueError(f"`strength` is {strength!r}, but has to be in (0, 1].")
    step = int(num_inference_steps * strength)
    if step < 1:
        raise ValueError(
            f"`strength` {strength} is less than one of {num_inference_steps} steps: use at least"
            f" {1 / num_inference_steps:.3g}."
        )
    return step


def draw_step(num_inference_steps: int, generator: torch.Generator | None) -> int:
    """A stop step, uniform on 1 .. `num_inference_steps`."""
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(1, num_inference_steps + 1, (1,), generator=generator, device=device))


def steps_of(num_inference_steps: int, timesteps: Sequence[float] | None, sigmas: Sequence[float] | None) -> int:
    """The steps of the full schedule: as many as there are of a caller's own, or else as asked for."""
    if timesteps is not None and sigmas is not None:
        raise ValueError("Give either `timesteps` or `sigmas`, and not both.")
    own = timesteps if timesteps is not None else sigmas
    if own is None:
        return num_inference_steps
    values = [float(value) for value in own]
    if (
        not values
        or any(not math.isfinite(value) or value < 0 for value in values)
        or values != sorted(set(values))[::-1]
    ):
        name = "timesteps" if timesteps is not None else "sigmas"
        raise ValueError(
            f"`{name}` is {values[:5]}, but has to fall from noise to image, from 0 on, with no value twice."
        )
    return len(values)


MASK_GRANULARITIES = ("channel", "all", "spatial")


class SONAGuidance(NamedTuple):
    """What `sona_guidance` returns; every field has the shape `[B, C, H, W]` of its inputs.

    Attributes:
        guidance: Delta_SONA of (4), in the units and the dtype of the noise estimates, not yet scaled by s.
        id_semantic_mask: M_S(c_ID) of (3), bool.
        id_nuisance_mask: M_N(c_ID) of (3), bool.
        ood_semantic_mask: M_S(c_OOD) of (3), without M_N(c_ID) where the filter of (7) is on, bool.
        ood_unfiltered_mask: M_S(c_OOD) of (3), bool.
    """

    guidance: torch.Tensor
    id_semantic_mask: torch.Tensor
    id_nuisance_mask: torch.Tensor
    ood_semantic_mask: torch.Tensor
    ood_unfiltered_mask: torch.Tensor


def sona_guidance(
    noise_uncond: torch.Tensor,
    noise_id: torch.Tensor,
    noise_ood: torch.Tensor,
    *,
    mask_threshold: float = 0.2,
    mask_granularity: str = "channel",
    remove_id_semantics: bool = True,
    preserve_id_nuisance: bool = True,
    add_ood_semantics: bool = True,
    filter_ood_by_nuisance: bool = True,
    global_guidance: bool = False,
) -> SONAGuidance:
    r"""SONA guidance, equations (3)-(7), of a batch of noise estimates.

    With psi(c) = noise(c) - noise_uncond, and M_S / M_N the top / bottom share lambda of |psi|:

        D_ID  = -M_S(ID) psi(ID)
        D_N   =  M_N(ID) psi(ID)
        D_OOD =  M_S(OOD) (1 - M_N(ID)) psi(OOD)
        guidance = D_ID + D_N + D_OOD

    Args:
        noise_uncond, noise_id, noise_ood: noise estimates `[B, C, H, W]` for the empty, the ID and the OOD prompt.
        mask_threshold: lambda, the share of a region, in (0, 0.5). A mask holds the nearest whole number of entries,
            at least one; of equal magnitudes the ones that come first in memory count as smaller.
        mask_granularity: what the share is taken over: "channel" (H x W of each channel), "all" (C x H x W), or
            "spatial" (one H x W mask for all channels, from the sum of |psi| over them).
        remove_id_semantics: add D_ID.
        preserve_id_nuisance: add D_N.
        add_ood_semantics: add D_OOD.
        filter_ood_by_nuisance: the factor (1 - M_N(ID)) in D_OOD.
        global_guidance: psi(OOD) everywhere instead (classifier-free guidance, the baseline of figure 6); the masks
            are then empty for ID and full for OOD.

    Magnitudes are compared in float32. Where psi is zero everywhere, its masks are empty.

    Raises:
        ValueError: `mask_threshold` or `mask_granularity` is not one of the above.
    """
    check_mask_options(mask_threshold, mask_granularity)
    psi_id = noise_id.float() - noise_uncond.float()
    psi_ood = noise_ood.float() - noise_uncond.float()
    if global_guidance:
        nothing = torch.zeros_like(psi_ood, dtype=torch.bool)
        return SONAGuidance(psi_ood.to(noise_uncond.dtype), nothing, nothing, ~nothing, ~nothing)

    id_semantic, id_nuisance = region_masks(psi_id, mask_threshold, mask_granularity)
    ood_unfiltered, _ = region_masks(psi_ood, mask_threshold, mask_granularity)
    ood_semantic = ood_unfiltered & ~id_nuisance if filter_ood_by_nuisance else ood_unfiltered

    guidance = torch.zeros_like(psi_id)
    if remove_id_semantics:
        guidance = guidance - id_semantic * psi_id
    if preserve_id_nuisance:
        guidance = guidance + id_nuisance * psi_id
    if add_ood_semantics:
        guidance = guidance + ood_semantic * psi_ood
    return SONAGuidance(guidance.to(noise_uncond.dtype), id_semantic, id_nuisance, ood_semantic, ood_unfiltered)


def region_masks(psi: torch.Tensor, threshold: float, granularity: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Top and bottom share of |psi| `[B, C, H, W]` as two disjoint bool masks of the same shape (3)."""
    magnitude = psi.abs()
    if granularity == "spatial":
        magnitude = magnitude.sum(dim=1, keepdim=True)
    flat = magnitude.flatten(1 if granularity == "all" else 2)
    size = flat.shape[-1]
    count = min(max(1, round(threshold * size)), size // 2)
    order = flat.argsort(dim=-1, stable=True)
    present = (flat.amax(dim=-1, keepdim=True) > 0).expand_as(flat)
    empty = torch.zeros_like(present)
    semantic = empty.scatter(-1, order[..., size - count :], present)
    nuisance = empty.scatter(-1, order[..., :count], present)
    return semantic.view_as(magnitude).expand_as(psi), nuisance.view_as(magnitude).expand_as(psi)


def add_momentum(
    guidance: torch.Tensor, momentum: torch.Tensor, mask: torch.Tensor, *, scale: float, beta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """SEGA's momentum (Brack et al. 2023), kept inside `mask`: the guidance to apply, and the momentum to carry on.

    guidance' = guidance + scale * mask * momentum;  momentum' = beta * momentum + (1 - beta) * guidance'
    """
    guidance = guidance + scale * mask * momentum
    return guidance, beta * momentum + (1 - beta) * guidance


def check_mask_options(threshold: float, granularity: str) -> None:
    """Raise ValueError unless `sona_guidance` can work with these."""
    if not isinstance(threshold, (int, float, np.number)) or not 0 < threshold < 0.5:
        raise ValueError(
            f"`mask_threshold` is {threshold!r}, but a share of the entries strictly between 0 and 0.5 is needed."
        )
    if granularity not in MASK_GRANULARITIES:
        raise ValueError(f"`mask_granularity` is {granularity!r}, but has to be one of {MASK_GRANULARITIES}.")


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


# Their `step` depends on nothing but its arguments and the step index, so images may join a running batch.
SCHEDULERS_WITHOUT_HISTORY = frozenset(
    {
        "DDIMScheduler",
        "DDPMScheduler",
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "FlowMatchEulerDiscreteScheduler",
    }
)
GOOD_SCHEDULERS = "DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler or EulerDiscreteScheduler"
GOOD_FLOW_SCHEDULERS = "FlowMatchEulerDiscreteScheduler"


@dataclass(frozen=True)
class Schedule:
    """The steps T of a full schedule, and what `set_timesteps` of a scheduler is told for them.

    Attributes:
        steps: how many.
        timesteps, sigmas: of the user's own, instead of those that the scheduler has for so many steps.
        mu: shift that flow schedulers take for the size of the images.
    """

    steps: int
    timesteps: tuple[float, ...] | None = None
    sigmas: tuple[float, ...] | None = None
    mu: float | None = None

    def set(self, scheduler: Any, device: torch.device | None = None, begin: int | None = None) -> torch.Tensor:
        """Reset a scheduler, to start at the index `begin`; gives the time steps of the full schedule."""
        own = {"timesteps": self.timesteps, "sigmas": self.sigmas}
        told: dict[str, Any] = {name: list(values) for name, values in own.items() if values is not None}
        if not told:
            told["num_inference_steps"] = self.steps
        if self.mu is not None and "mu" in _parameters_of(type(scheduler).set_timesteps):
            told["mu"] = self.mu
        scheduler.set_timesteps(**told, device=device)
        if begin is not None and hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(begin)
        return scheduler.timesteps


def shift_of_size(scheduler: Any, tokens: int) -> float | None:
    """The shift for so many tokens an image, linear in them; None for schedulers that do not shift by size."""
    config = scheduler.config
    if not config.get("use_dynamic_shifting"):
        return None
    few, many = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    least, most = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    return least + (tokens - few) * (most - least) / (many - few)


def even(schedule: Schedule) -> Schedule:
    """The schedule with sigmas 1 .. 1 / T in even steps, unless the user has their own; schedulers may shift them."""
    if schedule.timesteps is not None or schedule.sigmas is not None:
        return schedule
    return replace(schedule, sigmas=tuple(np.linspace(1, 1 / schedule.steps, schedule.steps).tolist()))


def prediction_type(scheduler: Any) -> str:
    """What the model predicts: "epsilon", "v_prediction", "sample" or, for flow models, "flow_prediction"."""
    return (
        "flow_prediction" if hasattr(scheduler, "scale_noise") else scheduler.config.get("prediction_type", "epsilon")
    )


@functools.cache
def _parameters_of(function: Callable) -> frozenset[str]:
    """Names of the arguments of a function."""
    return frozenset(inspect.signature(function).parameters)


def step_kwargs(scheduler: Any, eta: float, generator: Generators) -> dict[str, Any]:
    """The arguments `eta` and `generator`, as far as `scheduler.step` has them."""
    wanted = _parameters_of(type(scheduler).step)
    return {name: value for name, value in {"eta": eta, "generator": generator}.items() if name in wanted}


def noised(scheduler: Any, source: torch.Tensor, noise: torch.Tensor, joins: list[int]) -> torch.Tensor:
    """Source latents `[B, C, H, W]` with the noise that the scheduler has at an index of its schedule, one an image.

    By the index, not by its time step, which other indices may have, too (sigmas of Karras and the like).
    """
    latents = torch.empty_like(source)
    for join in set(joins):
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(join)
        rows = [k for k, own in enumerate(joins) if own == join]
        timesteps = scheduler.timesteps[[join] * len(rows)]
        if hasattr(scheduler, "scale_noise"):
            latents[rows] = scheduler.scale_noise(source[rows], timesteps, noise[rows])
        else:
            latents[rows] = scheduler.add_noise(source[rows], noise[rows], timesteps)
    return latents


def seen_by_model(scheduler: Any, latents: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Latents as the model takes them at a time step; those of flow models are taken as they are."""
    return scheduler.scale_model_input(latents, t) if hasattr(scheduler, "scale_model_input") else latents


def noise_units(scheduler: Any) -> list[float]:
    """The factor that turns a difference of predictions into a difference of noise estimates, at each time step.

    With x_t = a x_0 + b noise: noise = a v + b x_t for velocities v, noise = (x_t - a x_0) / b for samples, and
    noise = x_t + a v for the velocities of flow models.
    """
    kind = prediction_type(scheduler)
    if kind == "epsilon":
        return [1.0] * len(scheduler.timesteps)
    a, b = _levels(scheduler, scheduler.timesteps)
    return (-a / b if kind == "sample" else a).tolist()


def _levels(scheduler: Any, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The shares a of the source and b of the noise that the model expects at time steps."""
    if prediction_type(scheduler) == "flow_prediction":
        b = (timesteps.cpu().double() / scheduler.config.num_train_timesteps).clamp(1e-4, 1 - 1e-4)
        return 1 - b, b
    alphas = scheduler.alphas_cumprod.cpu()[timesteps.cpu().round().long().clamp(0, len(scheduler.alphas_cumprod) - 1)]
    return alphas.sqrt().clamp(min=1e-4), (1 - alphas).sqrt().clamp(min=1e-4)


def usable_scheduler(scheduler: Any) -> Any:
    """The scheduler with the settings of Stable Diffusion; PNDM as DDIM, since its counter cannot start mid-way."""
    if scheduler is None:
        return None
    wanted: dict[str, Any] = {"steps_offset": 1, "clip_sample": False, "thresholding": False}
    has_even_steps = isinstance(scheduler, (PNDMScheduler, DDIMScheduler, DDPMScheduler))
    if has_even_steps and scheduler.config.get("timestep_spacing") == "linspace":
        wanted["timestep_spacing"] = "leading"
    changes = {name: value for name, value in wanted.items() if scheduler.config.get(name, value) != value}
    if isinstance(scheduler, PNDMScheduler):
        logger.info("Replacing the PNDM scheduler by DDIM: PNDM cannot start within its schedule.")
        return DDIMScheduler.from_config(scheduler.config, **wanted)
    return type(scheduler).from_config(scheduler.config, **changes) if changes else scheduler


def check_scheduler(scheduler: Any, schedule: Schedule) -> None:
    """Raise ValueError, naming the scheduler, unless images may start anywhere within its schedule.

    Small images are noised and denoised with the very noise that they have: at each step they have to be as noisy as
    the model expects, and to come back in the end; noise that is added on the way has to be each image's own.
    """
    check_scheduler_kind(scheduler, is_flow=hasattr(scheduler, "scale_noise"))
    kind: Any = type(scheduler)
    if fault := _fault_of_scheduler(kind, scheduler.to_json_string(), schedule):
        raise ValueError(fault)


def check_scheduler_kind(scheduler: Any, is_flow: bool = False) -> None:
    """Raise ValueError for a scheduler that is not made for Stable Diffusion, or else for flow models."""
    made, good = ("flow models", GOOD_FLOW_SCHEDULERS) if is_flow else ("Stable Diffusion", GOOD_SCHEDULERS)
    has_noise = hasattr(scheduler, "scale_noise" if is_flow else "add_noise")
    needed = [] if is_flow and has_noise else ["add_noise", "scale_model_input", "alphas_cumprod"]
    missing = [repr(name) for name in (*needed, "step", "set_timesteps", "order") if not hasattr(scheduler, name)]
    if not missing and is_flow and prediction_type(scheduler) != "flow_prediction":
        missing = [f"prediction_type 'flow_prediction', but {prediction_type(scheduler)!r},"]
    if missing:
        raise ValueError(f"`{type(scheduler).__name__}` has no {missing[0]} and is not made for {made}: take {good}.")


@functools.lru_cache(maxsize=256)
def _fault_of_scheduler(kind: Any, config: str, schedule: Schedule) -> str | None:
    """Why a scheduler cannot be used, or None."""
    scheduler = kind.from_config(json.loads(config))
    settings = ("clip_sample", "thresholding", "timestep_spacing", "rescale_betas_zero_snr", "use_flow_sigmas")
    given = {name: scheduler.config.get(name) for name in (*settings, "prediction_type")}
    words = "".join(f", {name}={value!r}" for name, value in given.items() if value)
    words = f" ({words[2:]})" if words else ""
    good = GOOD_FLOW_SCHEDULERS if prediction_type(scheduler) == "flow_prediction" else GOOD_SCHEDULERS
    try:
        timesteps, known = schedule.set(scheduler), scheduler.config.num_train_timesteps
        if not timesteps.is_floating_point() and timesteps.max() >= known:
            return f"`num_inference_steps` {schedule.steps} leads beyond {known} time steps: use fewer."
        for stop_step in sorted({1, 2, 3, *np.linspace(1, schedule.steps, 8).astype(int).tolist()}):
            if stop_step > schedule.steps:
                break
            with torch.random.fork_rng(devices=[]):
                fault = _fault_of_run(scheduler, schedule, stop_step)
            if fault:
                return (
                    f"`{kind.__name__}`{words} cannot start at stop step {stop_step} of {schedule.steps}: {fault}; take"
                    f" {good}, or other settings or steps."
                )
    except (
        AttributeError,
        ImportError,
        LookupError,
        NotImplementedError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        return f"`{kind.__name__}`{words} cannot be used: {error}; take {good}, or other settings."
    return None


def _fault_of_run(scheduler: Any, schedule: Schedule, stop_step: int) -> str | None:
    """What goes wrong if three like images, of which two have the same seed, are denoised with the noise they have."""
    noise = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    noise = ((noise - noise.mean()) / noise.std()).expand(3, -1, -1, -1)
    source, is_random = torch.full_like(noise, 3.0), False
    first = getattr(scheduler, "alphas_cumprod", [1.0])[0]
    tolerance = 0.1 + (1 - float(first)) ** 0.5
    for _ in range(2):
        timesteps, join = schedule.set(scheduler), (schedule.steps - stop_step) * scheduler.order
        x = noised(scheduler, source, noise, [join] * 3)
        extra = step_kwargs(scheduler, 0.0, [torch.Generator().manual_seed(seed) for seed in (0, 0, 1)])
        off, draws, is_shared = 0.0, False, False
        for t in timesteps[join:]:
            seen = seen_by_model(scheduler, x, t)
            a, b = (float(level) for level in _levels(scheduler, t))
            own = (seen - a * source) / b if is_random else noise
            off = max(off, abs(float(seen.mean()) / 3 - a), abs(float(seen[0].std()) - b))
            outputs = {"epsilon": own, "v_prediction": a * own - b * source, "sample": source}
            output = outputs.get(prediction_type(scheduler), own - source)
            x = scheduler.step(output, t, x.clone(), **extra, return_dict=False)[0]
            draws, is_shared = draws or not torch.equal(x[0], x[2]), is_shared or not torch.equal(x[0], x[1])
        if not x.isfinite().all():
            return "latents become NaN or infinite"
        if is_shared:
            return "it adds noise that is not drawn from the generator of each image"
        if is_random or not draws:
            break
        is_random = True
    if not off < (0.12 if is_random else 0.06):
        return f"its noise is off by {off:.2f} from what the model expects"
    error = float((x - source).square().mean().sqrt())
    return None if error < tolerance else f"an image does not come back with the exact noise, but is off by {error:.2f}"


if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as Base
else:
    Base = object  # a file that diffusers loads may have one subclass of its pipelines only


class Family(Base):
    """A family of models: its components, and how they are called.

    What has no default is a family's own to say. The others are as in Stable Diffusion: an `AutoencoderKL`, latents
    `[B, C, H, W]` that the denoiser takes as they are, and schedules of which the number of steps is told, and the
    shift for the size of the images where the scheduler wants one.
    """

    title = ""
    """What its models are called."""
    checkpoints: tuple[str, ...] = ()
    """Names of the pipelines of diffusers whose checkpoints it takes."""
    file_parts: Mapping[str, str] = {}
    """How weights of single files are named at the beginning, by what they are of; empty if there are no such files."""
    vae: Any
    scheduler: Any
    image_processor: VaeImageProcessor
    vae_scale_factor: int
    patch_size = 1
    """Latents a side that the denoiser takes together."""
    largest_side: int | None = None
    """Patches a side that the denoiser has positions for, if their number is limited."""
    draws_latents = True
    """Whether latents are drawn from what the autoencoder gives, instead of its mode."""

    @property
    def denoiser(self) -> Any:
        """The module that predicts noise, velocity or sample."""
        raise NotImplementedError

    @property
    def image_size(self) -> int:
        """Side in pixels of the images that the denoiser was made for."""
        raise NotImplementedError

    def check_parts(self) -> None:
        """Raise ValueError, naming the part, unless the components make a model of the family."""
        raise NotImplementedError

    def denoise(self, rows: torch.Tensor, t: torch.Tensor, conditions: Conditions, attention: dict | None) -> Any:
        """What the denoiser predicts for rows of latents, both `[R, C, H, W]`, with their conditions `[R, ...]`.

        `attention` is passed on to the attention processors.
        """
        raise NotImplementedError

    def sharing(self, rows: int) -> AbstractContextManager:
        """What lets a call of the denoiser compute once what is alike in the three rows of an image."""
        return nullcontext()

    def schedule_of(self, steps: int, latents: torch.Size, timesteps: Any = None, sigmas: Any = None) -> Schedule:
        """The full schedule for latents of a shape `[B, C, H, W]`."""
        own = [None if one is None else tuple(map(float, one)) for one in (timesteps, sigmas)]
        tokens = (latents[-2] // self.patch_size) * (latents[-1] // self.patch_size)
        return Schedule(steps, own[0], own[1], mu=shift_of_size(self.scheduler, tokens))

    @property
    def text_encoders(self) -> list[Any]:
        """The text encoders that are there."""
        found = [part for name, part in self.components.items() if name.startswith("text_encoder")]
        return [encoder for encoder in found if encoder is not None]

    @property
    def condition_shapes(self) -> dict[str, tuple[int | None, ...]]:
        """Names of the conditions that `encode_texts` gives, and the shape of each; None stands for their length."""
        raise NotImplementedError

    @property
    def prompt_length(self) -> int:
        """Tokens of a prompt that are read."""
        raise NotImplementedError

    @property
    def encoded_length(self) -> int:
        """Length of the conditions that `encode_texts` gives."""
        return self.prompt_length

    def token_ids(self, texts: list[str]) -> list[list[int]]:
        """The tokens of texts, all of them, for the text encoder that reads most."""
        raise NotImplementedError

    def encode_texts(self, texts: list[str], device: torch.device, clip_skip: int | None = None) -> Conditions:
        """What N texts become for the denoiser, by name: tensors `[N, ...]` whose shapes are the same for any text."""
        raise NotImplementedError

    def trimmed(self, conditions: Conditions) -> Conditions:
        """Conditions `[P, B, ...]` without what is padding in all of them."""
        return conditions

    @property
    def image_channels(self) -> int:
        """Channels of the images."""
        return self.vae.config.in_channels

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return self.vae.config.latent_channels

    @property
    def latent_side(self) -> int:
        """Pixels a side that one latent stands for."""
        return self.vae_scale_factor

    def scaled(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents of the autoencoder as the denoiser knows them, `[B, C, H, W]`."""
        return (latents - (self.vae.config.get("shift_factor") or 0.0)) * self.vae.config.scaling_factor

    def unscaled(self, latents: torch.Tensor) -> torch.Tensor:
        """The opposite of `scaled`."""
        return latents / self.vae.config.scaling_factor + (self.vae.config.get("shift_factor") or 0.0)

    @property
    def vae_side(self) -> int:
        """Pixels a side that one latent of the autoencoder stands for."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def vae_encode(self, vae: Any, pixels: torch.Tensor) -> Any:
        """What an autoencoder makes of images `[B, C, H, W]` in [-1, 1]."""
        return vae.encode(pixels)

    def vae_decode(self, vae: Any, latents: torch.Tensor) -> torch.Tensor:
        """Images `[B, C, H, W]` in [-1, 1] of latents of the autoencoder."""
        return vae.decode(latents, return_dict=False)[0]

    def blanked(self, images: torch.Tensor) -> tuple[torch.Tensor, list[bool] | None]:
        """Images without harmful ones, and a flag an image, if the family has a safety checker."""
        return images, None


_VAE_IS_CALLED = threading.Lock()


class ImagesMixin(Family):
    """Images and latents of a pipeline."""

    def _set_up_images(self, vae: Any) -> None:
        """The processor of the images that an autoencoder takes; of the usual ones where it comes later."""
        is_grey = vae is not None and self.image_channels == 1
        self.vae_scale_factor = self.vae_side if vae is not None else 8
        self.image_processor = VaeImageProcessor(
            do_resize=False,
            vae_scale_factor=self.vae_scale_factor,
            vae_latent_channels=self.latent_channels if vae is not None else 4,
            do_convert_rgb=not is_grey,
            do_convert_grayscale=is_grey,
        )

    @property
    def latent_dtype(self) -> torch.dtype:
        """Of latents, noise, guidance and steps: that of the denoiser, or float32 where it is a half one.

        A half dtype would round them anew at every step.
        """
        return torch.float64 if self.denoiser.dtype == torch.float64 else torch.float32

    def preprocess_image(self, image: PipelineImageInput) -> torch.Tensor:
        """Images of any accepted form as a tensor `[B, C, H, W]` in [-1, 1], or latents as they are.

        Raises ValueError for no image, NaN, values out of range, and sizes, modes or channels the VAE cannot take.
        """
        images = list(image) if isinstance(image, (list, tuple)) else [image]
        kinds = (PIL.Image.Image, np.ndarray, torch.Tensor)
        if not any(all(isinstance(one, kind) for one in images) for kind in kinds):
            found = sorted({type(one).__name__ for one in images})
            raise TypeError(f"`image` is made of {found}: give PIL images, arrays or tensors, all of one kind.")
        if not images or any(len(one) == 0 for one in images if not isinstance(one, PIL.Image.Image)):
            raise ValueError("`image` is empty: give at least one image.")
        for k, one in enumerate(images):
            size, first = (x.size if isinstance(x, PIL.Image.Image) else tuple(x.shape) for x in (one, images[0]))
            if size != first:
                raise ValueError(f"Image {k} has the size {size} and image 0 {first}: bring all to one size.")
            if isinstance(one, PIL.Image.Image) and (one.mode == "F" or one.mode.startswith("I")):
                raise ValueError(f"Image {k} has the mode {one.mode!r}: scale it to 8 bits (mode 'L' or 'RGB') first.")
            is_latents = isinstance(one, torch.Tensor) and one.shape[-3:-2] == (self.latent_channels,)
            if not isinstance(one, PIL.Image.Image) and not is_latents and one.min() < 0:  # else taken as [-1, 1]
                raise ValueError("Image values go below 0: scale arrays and tensors to [0, 1].")
        tensor = self.image_processor.preprocess(images if isinstance(image, tuple) else image)

        channels, latent_channels = self.image_channels, self.latent_channels
        is_array = isinstance(images[0], np.ndarray)
        if tensor.shape[1] != channels and (is_array or tensor.shape[1] != latent_channels):
            raise ValueError(
                f"`image` has {tensor.shape[1]} channels; the VAE takes {channels}, and tensors of latents have"
                f" {latent_channels}."
            )
        finite = tensor.isfinite().flatten(1).all(dim=1)
        if not finite.all():
            raise ValueError(f"Image {finite.tolist().index(False)} holds NaN or infinite values.")
        is_image = tensor.shape[1] == channels and channels != latent_channels
        what, factor = ("Images", self.latent_side * self.patch_size) if is_image else ("Latents", self.patch_size)
        height, width = tensor.shape[-2:]
        if height % factor or width % factor or not height or not width:
            sides = f"{width} x {height} pixels" if is_image else f"{width} x {height}"
            raise ValueError(f"{what} are {sides}, but the model takes multiples of {factor}: resize them.")
        if self.largest_side and max(height, width) > (most := self.largest_side * factor):
            raise ValueError(f"{what} are {width} x {height}, but the model takes at most {most} a side: resize them.")
        if is_image and tensor.abs().max() > 1:
            raise ValueError("Image values go beyond 1: scale arrays and tensors to [0, 1].")
        return tensor

    def encode_image(
        self, image: torch.Tensor, device: torch.device, generator: Generators, sample: bool = True
    ) -> torch.Tensor:
        """Scaled latents z_0 of images `[B, C, H, W]` in [-1, 1], in `latent_dtype`; latents are passed through.

        They are drawn from what the VAE gives, or are its mode. Raises FloatingPointError if they are not finite.
        """
        dtype = self.latent_dtype
        if image.shape[1] == self.latent_channels:
            return image.to(device=device, dtype=dtype)
        encoded: Any = None

        def encode(vae: Any) -> torch.Tensor:
            nonlocal encoded
            encoded = self.vae_encode(vae, image.to(device=device, dtype=vae.dtype))
            return encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents

        latents = self._finite_from_vae(encode)
        if isinstance(latent_dist := getattr(encoded, "latent_dist", None), DiagonalGaussianDistribution):
            latent_dist = DiagonalGaussianDistribution(latent_dist.parameters.to(dtype), latent_dist.deterministic)
        if sample and self.draws_latents and latent_dist is not None:
            latents = latent_dist.sample(generator)
        return self.scaled(latents.to(dtype))

    def _finite_from_vae(self, run: Callable[[Any], torch.Tensor]) -> torch.Tensor:
        """What `run` makes of the VAE, `[B, ...]`.

        A VAE that overflows in float16 goes on in float32 from then on if its configuration has `force_upcast`.

        Raises:
            FloatingPointError: it gives NaN or infinite values even so.
        """
        with _VAE_IS_CALLED:
            found = run(self.vae)
        if found.isfinite().all():
            return found
        dtype = self.vae.dtype
        if dtype == torch.float16 and self.vae.config.get("force_upcast"):
            logger.warning("The VAE overflows in float16: it computes in float32 from now on.")
            with _VAE_IS_CALLED:
                self.vae.to(torch.float32)
                found, dtype = run(self.vae), torch.float32
        bad = (~found.isfinite()).flatten(1).any(dim=1).tolist()
        if True in bad:
            way = (
                "its weights or the latents are not good"
                if dtype == torch.float32
                else ("compute in bfloat16 or float32, or let the VAE alone do so, by `pipe.vae.to(torch.float32)`")
            )
            raise FloatingPointError(
                f"The VAE gives NaN or infinite values for image {bad.index(True)} in {str(dtype)[6:]}: {way}."
            )
        return found

    def decode(self, latents: torch.Tensor, output_type: str) -> tuple[Any, list[bool] | None]:
        """Images of scaled latents `[B, C, H, W]`, and the safety checker's flags if there is one.

        Raises FloatingPointError for pixels that are not finite.
        """
        if output_type == "latent":
            return latents, None
        latents = self.unscaled(latents)
        image = self._finite_from_vae(lambda vae: self.vae_decode(vae, latents.to(vae.dtype)))
        image, flags = self.blanked(image)
        denormalize = [not flag for flag in flags] if flags is not None else [True] * len(image)
        return self.image_processor.postprocess(image, output_type=output_type, do_denormalize=denormalize), flags


Prompts = Mapping[str, str | list[str] | None]
Embeds = Mapping[str, torch.Tensor | Conditions | None]


class PromptsMixin(Family):
    """Prompts of a pipeline."""

    def check_prompts(self, batch_size: int, prompts: Prompts, embeds: Embeds) -> None:
        """Raise ValueError or TypeError for prompts or embeddings that `encode_prompts` cannot work with."""
        for name, prompt in prompts.items():
            if (prompt is None) == (embeds[name] is None):
                raise ValueError(f"Give either `{name}` or `{name}_embeds`, and not both.")
            texts = [prompt] if isinstance(prompt, str) else prompt
            if texts is not None and not (isinstance(texts, list) and all(isinstance(text, str) for text in texts)):
                raise TypeError(f"`{name}` has to be a string or a list of strings, but is {prompt!r}.")
            if isinstance(prompt, list) and len(prompt) != batch_size:
                raise ValueError(
                    f"`{name}` has {len(prompt)} entries for {batch_size} images: give one, or one an image."
                )
            if texts is not None and not all(text.strip() for text in texts):
                raise ValueError(
                    f"`{name}` is {prompt!r}, but an empty prompt means nothing: say what the image shows."
                )
        given = {f"{name}_embeds": self.as_conditions(value) for name, value in embeds.items() if value is not None}
        for name, conditions in given.items():
            self._check_embeds(name, conditions, batch_size)
        lengths = {some["prompt_embeds"].shape[1] for some in given.values()}
        if len(given) < len(embeds) and not self.text_encoders:
            missing = [f"`{name}_embeds`" for name in embeds if f"{name}_embeds" not in given]
            raise ValueError(f"The pipeline has no text encoder: load one, or give {' and '.join(missing)}, too.")
        if given and len(given) < len(embeds):
            lengths.add(self.encoded_length)
        if len(lengths) > 1:
            raise ValueError(f"Prompt embeddings of different lengths {sorted(lengths)} cannot be used in one call.")

    def as_conditions(self, value: Any) -> Any:
        """Embeddings that a caller gives, by name; a tensor is "prompt_embeds"."""
        return value if isinstance(value, dict) else {"prompt_embeds": value}

    def _check_embeds(self, name: str, given: Conditions, batch_size: int) -> None:
        shapes = self.condition_shapes
        if set(given) != set(shapes):
            raise ValueError(
                f"`{name}` has {sorted(given)}, but {sorted(shapes)} are needed: give them as `encode_texts` does."
            )
        for key, value in given.items():
            called = f"`{name}`" if len(shapes) == 1 else f"`{name}[{key!r}]`"
            if not isinstance(value, torch.Tensor):
                raise TypeError(f"{called} has to be a tensor, but is a {type(value).__name__}.")
            sides = (None, *shapes[key])
            is_alike = value.ndim == len(sides) and all(s in (None, own) for s, own in zip(sides, value.shape))
            if not is_alike or len(value) not in (1, batch_size):
                needed = ", ".join(str(side or "length") for side in shapes[key])
                raise ValueError(
                    f"{called} has the shape {tuple(value.shape)}, but [1 or {batch_size}, {needed}] is needed."
                )

    def encode_prompts(
        self,
        batch_size: int,
        prompts: Prompts,
        embeds: Embeds,
        device: torch.device,
        clip_skip: int | None = None,
        lora_scale: float | None = None,
    ) -> Conditions:
        """Conditions `[3, B, ...]` of the empty, ID and OOD prompts; each distinct text is encoded once.

        As in img2img, `clip_skip` leaves the empty prompt alone.
        """
        texts = {"uncond_prompt": [""]} | {k: [v] if isinstance(v, str) else v or [] for k, v in prompts.items()}
        wanted = {name: texts[name] for name, given in embeds.items() if given is None}
        skips = {name: None if name == "uncond_prompt" else clip_skip for name in wanted}
        encoded = self._encoded([(text, skips[name]) for name in wanted for text in wanted[name]], device, lora_scale)
        found, dtype = [], self.denoiser.dtype  # which looks at every weight
        for name, given in embeds.items():
            if given is None:
                rows = [encoded[text, skips[name]] for text in wanted[name]]
                given = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
            found.append(self._expanded(self.as_conditions(given), batch_size, device, dtype))
        return self.trimmed({key: torch.stack([one[key] for one in found]) for key in found[0]})

    def _encoded(
        self, wanted: list[tuple[str, int | None]], device: torch.device, lora_scale: float | None
    ) -> dict[tuple[str, int | None], Conditions]:
        """The conditions of texts with the layers that are skipped, a row each."""
        if wanted and lora_scale is not None:
            self._lora_scale = lora_scale
        is_scaled = wanted and lora_scale is not None and USE_PEFT_BACKEND
        for encoder in self.text_encoders if is_scaled else []:
            scale_lora_layers(encoder, lora_scale)
        found = {}
        for skip in dict.fromkeys(skip for _, skip in wanted):
            texts = list(dict.fromkeys(text for text, own in wanted if own == skip))
            for text, ids in zip(texts, self.token_ids(texts)):
                if len(ids) > self.prompt_length:
                    logger.warning(f"The prompt {text!r} is longer than {self.prompt_length} tokens and is cut.")
            conditions = self.encode_texts(texts, device, skip)
            for k, text in enumerate(texts):
                found[text, skip] = {key: value[k] for key, value in conditions.items()}
        for encoder in self.text_encoders if is_scaled else []:
            unscale_lora_layers(encoder, lora_scale)
        return found

    def _expanded(self, given: Conditions, batch_size: int, device: torch.device, dtype: torch.dtype) -> Conditions:
        """Conditions of all images; numbers go to the denoiser in its dtype, masks and lengths stay with the host."""
        moved = {}
        for key, value in given.items():
            value = value.to(device, dtype) if value.is_floating_point() else value.cpu()
            moved[key] = value.expand(batch_size, *value.shape[1:])
        return moved


class SavingMixin(Family):
    """A pipeline that is saved with its code."""

    @classmethod
    def standalone_file(cls) -> Path:
        """The file that holds the class with all that it needs besides libraries."""
        own = Path(inspect.getfile(cls))
        made = own.parents[2] / "custom_pipelines" / own.name
        return made if own.parent.name == "families" and made.exists() else own

    def save_config(self, save_directory: str, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write `model_index.json`, and the pipeline's file beside it, which `trust_remote_code=True` loads.

        Called by `save_pretrained` and `push_to_hub`.
        """
        source, target = self.standalone_file(), Path(save_directory) / "pipeline.py"
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.resolve() != target.resolve():
            shutil.copyfile(source, target)
        super().save_config(save_directory, push_to_hub=push_to_hub, **kwargs)

    def to_json_string(self) -> str:
        """The contents of `model_index.json`, with the class name in the list form of custom pipelines."""
        config = json.loads(super().to_json_string())
        config["_class_name"] = ["pipeline", type(self).__name__]
        return json.dumps(config, indent=2, sort_keys=True) + "\n"

    @classmethod
    def _dict_from_json_file(cls, json_file: str | Path) -> dict:
        """Take the list form for the class that is being asked, which needs no remote code."""
        config = super()._dict_from_json_file(json_file)
        if isinstance(config.get("_class_name"), list):
            config["_class_name"] = config["_class_name"][1]
        return config


@dataclass
class SONAPipelineOutput(BaseOutput):
    """Output of a SONA pipeline.

    Attributes:
        images: the outliers, in the order of the input images: a list of PIL images, an array `[B, H, W, C]` or a
            tensor `[B, C, H, W]` in [0, 1], or latents, by `output_type`.
        stop_steps: the stop step of each image, 1 .. `num_inference_steps`; over `num_inference_steps`, its strength.
        nsfw_content_detected: a flag an image if the checkpoint has a safety checker, else None.
    """

    images: list[PIL.Image.Image] | np.ndarray | torch.Tensor
    stop_steps: list[int]
    nsfw_content_detected: list[bool] | None


class SONAMixin(SavingMixin, ImagesMixin, PromptsMixin):
    """Algorithm 2 on the parts of a pipeline; a family is a `DiffusionPipeline` with it, and says what is its own.

    See `Family` for that.
    """

    _interrupt: bool
    _num_timesteps: int
    _callback_tensor_inputs = ["latents", *SONAGuidance._fields[1:], "noise_pred", "guidance"]

    @property
    def interrupt(self) -> bool:
        """Whether a callback asked for the end of the denoising, by `pipe._interrupt = True`."""
        return self._interrupt

    @property
    def num_timesteps(self) -> int:
        """Calls of the denoiser in the current run."""
        return self._num_timesteps

    @torch.no_grad()
    def __call__(
        self,
        image: PipelineImageInput,
        id_prompt: str | list[str] | None = None,
        ood_prompt: str | list[str] | None = None,
        strength: float | Sequence[float] | None = None,
        stop_step: int | Sequence[int] | None = None,
        num_inference_steps: int = 50,
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
        momentum_scale: float = 0.0,
        momentum_beta: float = 0.4,
        eta: float = 0.0,
        generator: Generators = None,
        id_prompt_embeds: torch.Tensor | Conditions | None = None,
        ood_prompt_embeds: torch.Tensor | Conditions | None = None,
        uncond_prompt_embeds: torch.Tensor | Conditions | None = None,
        clip_skip: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict] | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        cross_attention_kwargs: dict[str, Any] | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> SONAPipelineOutput | tuple:
        r"""Make one outlier of each image (algorithm 2 of the paper).

        Costs exactly 3 x (sum of the stop steps) rows in the denoiser, with first-order schedulers.

        Args:
            image: PIL images, arrays `[B, H, W, C]` or tensors `[B, C, H, W]` in [0, 1], or a list of one of these,
                all of one size, with sides that the model's factor divides (8 for Stable Diffusion 1 and 2). A tensor
                with as many channels as the model's latents (4 there) is taken as latents.
            id_prompt, ood_prompt: what the images show and what the outliers shall mean; one for all, or one an image.
            strength: part of the schedule to noise up to, in (0, 1]; one for all or one an image. Gives
                `int(num_inference_steps * strength)` steps. None draws a stop step for each image, uniformly.
            stop_step: the same as an exact number of steps, 1 .. `num_inference_steps`; instead of `strength`.
            num_inference_steps: steps T of the full schedule.
            guidance_scale: s of (2).
            mask_threshold, mask_granularity, remove_id_semantics, preserve_id_nuisance, add_ood_semantics,
            filter_ood_by_nuisance, global_guidance: see `sona_guidance`.
            warmup_steps: no guidance in the first steps, counted on the full schedule (SEGA; 0 is off).
            cooldown_steps: no guidance from this step of the full schedule on (SEGA; None is off).
            momentum_scale, momentum_beta: see `add_momentum` (SEGA; scale 0 is off).
            eta: eta of DDIM; ignored by other schedulers.
            generator: one for the call, or one an image, which makes an image independent of its batch. Each gives
                the stop step (if it is drawn), then the VAE sample, then the noise.
            id_prompt_embeds, ood_prompt_embeds: text embeddings `[1 or B, L, D]` instead of the prompts, or all that
                `encode_texts` gives for one, by name.
            uncond_prompt_embeds: the same instead of those of the empty prompt.
            clip_skip: layers of the text encoder to skip for the ID and OOD prompts.
            output_type: "pil", "np", "pt" or "latent".
            return_dict: False returns the tuple (images, stop_steps, nsfw_content_detected).
            callback_on_step_end: called as `callback(pipe, step, timestep, tensors)` after each step, where
                `step` counts on the full schedule; "latents" in the dictionary that it returns replace the latents,
                and `pipe._interrupt = True` ends the denoising.
            callback_on_step_end_tensor_inputs: names of `_callback_tensor_inputs`: "latents", "id_semantic_mask",
                "id_nuisance_mask", "ood_semantic_mask" (after the filter), "ood_unfiltered_mask" (before it),
                "noise_pred" (the guided prediction, as the scheduler takes it) and "guidance" (in units of noise,
                without s). Each is `[B, C, H, W]` in the order of the images. Images that have not joined yet have
                their noised latents, and zeros elsewhere.
            cross_attention_kwargs: passed on to the attention processors, whatever the denoiser calls them.
            timesteps, sigmas: the full schedule itself, from noise to image, for schedulers that take one of these;
                `num_inference_steps` is then how many there are.

        Raises:
            ValueError, TypeError: an argument breaks one of the rules above; before any model is run.
            FloatingPointError: the latents or the pixels of an image became NaN or infinite.
        """
        call_back = Callback(callback_on_step_end, callback_on_step_end_tensor_inputs)
        regions: dict[str, Any] = {
            "mask_threshold": mask_threshold,
            "mask_granularity": mask_granularity,
            "remove_id_semantics": remove_id_semantics,
            "preserve_id_nuisance": preserve_id_nuisance,
            "add_ood_semantics": add_ood_semantics,
            "filter_ood_by_nuisance": filter_ood_by_nuisance,
            "global_guidance": global_guidance,
        }
        prompts = {"id_prompt": id_prompt, "ood_prompt": ood_prompt}
        embeds = {"uncond_prompt": uncond_prompt_embeds, "id_prompt": id_prompt_embeds, "ood_prompt": ood_prompt_embeds}
        check_numbers(
            guidance_scale=guidance_scale, momentum_scale=momentum_scale, momentum_beta=momentum_beta, eta=eta
        )
        check_counts(warmup_steps=warmup_steps, cooldown_steps=cooldown_steps, clip_skip=clip_skip)
        num_inference_steps = steps_of(num_inference_steps, timesteps, sigmas)
        image, generator = self.check_inputs(
            image, prompts, embeds, regions, generator, num_inference_steps, output_type, call_back.names
        )
        stop_steps = self.get_stop_steps(len(image), strength, stop_step, num_inference_steps, generator)
        self._interrupt = False
        device = self._execution_device
        schedule = self.schedule_of(num_inference_steps, self.latent_shape(image), timesteps, sigmas)
        check_scheduler(self.scheduler, schedule)
        schedule.set(self.scheduler, device)

        lora_scale = (cross_attention_kwargs or {}).get("scale")
        conditions = self.encode_prompts(len(image), prompts, embeds, device, clip_skip, lora_scale)
        source = self.encode_image(image, device, generator)
        noise = randn_tensor(source.shape, generator=generator, device=device, dtype=source.dtype)
        joins = [(num_inference_steps - steps) * self.scheduler.order for steps in stop_steps]
        latents = noised(self.scheduler, source, noise, joins)
        batch = Batch(latents, conditions, joins, generator)
        sega = Sega(warmup_steps, cooldown_steps, momentum_scale, momentum_beta, source)

        with room_to_compile(self.denoiser):
            for step in self.denoising_steps(schedule, device, batch.joins):
                latents, conditions, generators = batch.take(step.active)
                predictions = self.predict_noise(latents, step.t, conditions, cross_attention_kwargs)
                found = sega(sona_guidance(*predictions, **regions), step)
                noise_pred = predictions[0] + guidance_scale * found.guidance
                extra = step_kwargs(self.scheduler, eta, generators)
                batch.put(self.scheduler.step(noise_pred, step.t, latents, **extra, return_dict=False)[0], step)
                call_back(self, step, batch, found, noise_pred)

        batch.raise_if_bad()
        images, nsfw_content_detected = self.decode(batch.in_caller_order(batch.latents), output_type)
        self.maybe_free_model_hooks()
        output = images, stop_steps, nsfw_content_detected
        return SONAPipelineOutput(*output) if return_dict else output

    def check_inputs(
        self,
        image: PipelineImageInput,
        prompts: Prompts,
        embeds: Embeds,
        regions: dict[str, Any],
        generator: torch.Generator | Sequence[torch.Generator] | None,
        num_inference_steps: int,
        output_type: str,
        callback_tensor_inputs: Sequence[str],
    ) -> tuple[torch.Tensor, Generators]:
        """The image as `preprocess_image` gives it, and the generator or a list of them.

        Raises ValueError or TypeError, naming value and rule, for arguments that `__call__` cannot work with.
        """
        self.check_parts()
        check_mask_options(regions["mask_threshold"], regions["mask_granularity"])
        tensor = self.preprocess_image(image)
        self.check_prompts(len(tensor), prompts, embeds)
        sources = checked_generators(generator, len(tensor))
        check_steps(num_inference_steps, self.scheduler.config.get("num_train_timesteps", num_inference_steps))
        check_output_type(output_type)
        if unknown := [name for name in callback_tensor_inputs if name not in self._callback_tensor_inputs]:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` has {unknown}, but can have {self._callback_tensor_inputs} only."
            )
        return tensor, sources

    def get_stop_steps(
        self,
        batch_size: int,
        strength: float | Sequence[float] | None,
        stop_step: int | Sequence[int] | None,
        num_inference_steps: int,
        generator: Generators = None,
    ) -> list[int]:
        """Stop step of every image: as given, `int(num_inference_steps * strength)`, or drawn from 1 .. T."""
        if strength is not None and stop_step is not None:
            raise ValueError("Give either `strength` or `stop_step`, and not both.")
        if strength is None and stop_step is None:
            sources = generator if isinstance(generator, list) else [generator] * batch_size
            return [draw_step(num_inference_steps, source) for source in sources]
        name, value = "strength" if stop_step is None else "stop_step", strength if stop_step is None else stop_step
        value = value.tolist() if isinstance(value, (np.ndarray, torch.Tensor)) else value
        values: list[Any] = list(value) if isinstance(value, Sequence) else [value] * batch_size
        if len(values) != batch_size:
            raise ValueError(f"`{name}` has {len(values)} entries for {batch_size} images: give one, or one an image.")
        if stop_step is None:
            return [step_of_strength(one, num_inference_steps) for one in values]
        if not all(
            isinstance(one, (int, np.integer)) and not isinstance(one, bool) and 1 <= one <= num_inference_steps
            for one in values
        ):
            raise ValueError(f"`stop_step` is {value}, but has to be made of integers from 1 to {num_inference_steps}.")
        return [int(one) for one in values]

    def latent_shape(self, image: torch.Tensor) -> torch.Size:
        """Shape `[B, C, H, W]` of the latents of images, or of latents, as `preprocess_image` gives them."""
        if image.shape[1] == self.latent_channels:
            return image.shape
        height, width = (side // self.latent_side for side in image.shape[2:])
        return torch.Size((len(image), self.latent_channels, height, width))

    def predict_noise(
        self, latents: torch.Tensor, t: torch.Tensor, conditions: Conditions, attention: dict | None = None
    ) -> tuple[torch.Tensor, ...]:
        """What the denoiser makes of latents `[B, C, H, W]` with each of the conditions `[3, B, ...]`, in one call.

        Conditions are in the denoiser's dtype, as `encode_prompts` gives them.
        """
        rows = seen_by_model(self.scheduler, torch.cat([latents] * 3), t).to(conditions["prompt_embeds"].dtype)
        flat = {name: value.flatten(0, 1) for name, value in conditions.items()}
        with self.sharing(len(rows)):
            predicted = self.denoise(rows, t, flat, attention)
        return predicted.to(latents.dtype).chunk(3)

    def denoising_steps(self, schedule: Schedule, device: torch.device, joins: list[int]) -> Iterator[Step]:
        """The steps t = T~ .. 1, one for each call of the denoiser, until a callback interrupts.

        Images, sorted by the index on the full schedule at which they join, share one run of a scheduler without
        history; with the others each stop step has a run of its own.
        """
        order, units = self.scheduler.order, noise_units(self.scheduler)
        share = type(self.scheduler).__name__ in SCHEDULERS_WITHOUT_HISTORY
        runs = [joins] if share else [list(run) for _, run in itertools.groupby(joins)]
        self._num_timesteps, first = sum(len(units) - run[0] for run in runs), 0
        with self.progress_bar(total=self._num_timesteps) as progress_bar:
            for run in runs:
                timesteps = schedule.set(self.scheduler, device, begin=run[0])
                for index in range(run[0], len(timesteps)):
                    if self.interrupt:
                        return
                    active = slice(first, first + sum(join <= index for join in run))
                    yield Step(index // order, timesteps[index], active, units[index])
                    progress_bar.update()
                first += len(run)


def room_to_compile(denoiser: torch.nn.Module) -> AbstractContextManager:
    """Let blocks that are compiled one by one be compiled for every width that they have, and for any batch size.

    It looks at all modules, which takes milliseconds: once a call, and not at every step.
    """
    if all(module._compiled_call_impl is None for module in denoiser.modules()):
        return nullcontext()
    import torch._dynamo.config as settings

    return settings.patch(recompile_limit=max(64, settings.recompile_limit))


Widths = dict[str, tuple[Any, str, int]]
"""By setting of the transformer: a text encoder, the setting with its width, and how many such widths are needed."""


class FluxMixin(SONAMixin):
    """A pipeline with a transformer that reads tokens of 2 x 2 latents."""

    transformer: Any

    @property
    def denoiser(self) -> Any:
        """The transformer."""
        return self.transformer

    @property
    def image_size(self) -> int:
        """Side in pixels of the images that FLUX is made for: 1024."""
        return 128 * self.vae_scale_factor

    def check_prompts(self, batch_size: int, prompts: Prompts, embeds: Embeds) -> None:
        """Raise ValueError for prompts without a text encoder or tokenizer, too."""
        readers = [name for name in self.components if name.startswith(("text_encoder", "tokenizer"))]
        missing = [name for name in readers if getattr(self, name) is None]
        if missing and any(given is None for given in embeds.values()):
            raise ValueError(
                f"`{missing[0]}` is None, but prompts need it: load it, or give `id_prompt_embeds`, `ood_prompt_embeds`"
                " and `uncond_prompt_embeds`."
            )
        super().check_prompts(batch_size, prompts, embeds)

    def check_flux(self, widths: Widths, good: str, own: str = "guidance_embeds") -> None:
        """Raise ValueError, naming the part, unless the parts that are there go together and take text and noise only.

        `good` is the model to take instead, and `own` a setting that transformers of its kind have, and others do not.
        """
        if self.scheduler is not None:
            check_scheduler_kind(self.scheduler, is_flow=True)
        for name in ("in_channels", "latent_channels", "block_out_channels"):
            if self.vae is not None and not self.vae.config.get(name):
                raise ValueError(f"`vae` is a {type(self.vae).__name__} without {name!r}: take that of {good}.")
        if self.transformer is None:
            return
        config = self.transformer.config
        if missing := [name for name in ("in_channels", own, *widths) if name not in config]:
            raise ValueError(
                f"`transformer` is a {type(self.transformer).__name__} without {missing[0]!r}: take {good}."
            )
        given = config.get("out_channels") or config.in_channels
        if config.in_channels != given:
            raise ValueError(
                f"The transformer takes {config.in_channels} channels and gives {given}: it is made for images beside"
                f" the noise, too (fill, canny or depth), which SONA does not give; take {good}."
            )
        if self.vae is not None and 4 * self.vae.config.latent_channels != config.in_channels:
            raise ValueError(
                f"The VAE makes latents of {self.vae.config.latent_channels} channels and the transformer takes"
                f" {config.in_channels} for 2 x 2 of them: take both from one checkpoint of {good}."
            )
        for name, (encoder, side, times) in widths.items():
            width = config[name] if encoder is None else times * getattr(encoder.config, side, 0)
            if width != config[name]:
                raise ValueError(
                    f"The {type(encoder).__name__} gives embeddings of width {width} and the transformer takes"
                    f" {config[name]}: take both from one checkpoint of {good}."
                )


def check_no_skip(clip_skip: int | None, title: str) -> None:
    """Raise ValueError for layers to skip in models of a title."""
    if clip_skip is not None:
        raise ValueError(f"`clip_skip` is {clip_skip}, but {title} has fixed layers of text encoders: leave it out.")


def image_positions(height: int, width: int, device: torch.device) -> torch.Tensor:
    """Positions (0, y, x) `[H W, 3]` of tokens, row by row."""
    return torch.cartesian_prod(*(torch.arange(side, device=device) for side in (1, height, width)))


class SONAFlux2Pipeline(FluxMixin, DiffusionPipeline, Flux2LoraLoaderMixin):
    r"""Image-to-image pipeline that turns labelled images into semantic outliers with FLUX.2 [klein] base.

    Each image is noised up to a stop step of its own and denoised with `sona_guidance`. Latents are 2 x 2 of the
    autoencoder's, with four times its channels.

    Args:
        scheduler ([`FlowMatchEulerDiscreteScheduler`]): a scheduler that shifts its steps for the size of the images.
        vae ([`AutoencoderKLFlux2`]): encodes images to latents and back, and knows their means and variances.
        text_encoder ([`~transformers.Qwen3ForCausalLM`]): gives three vectors for each token of a prompt.
        tokenizer ([`~transformers.Qwen2TokenizerFast`]): its tokenizer, with a chat template.
        transformer ([`Flux2Transformer2DModel`]): predicts velocity from latents and a prompt.
        is_distilled (`bool`): whether the model is distilled to few steps without guidance, which is refused.
    """

    title = "FLUX.2 [klein] base"
    checkpoints = ("Flux2KleinPipeline",)
    model_cpu_offload_seq = "text_encoder->transformer->vae"
    draws_latents = False
    text_layers = (9, 18, 27)
    """Layers of the text encoder that the transformer reads."""

    def __init__(
        self,
        scheduler: FlowMatchEulerDiscreteScheduler,
        vae: AutoencoderKLFlux2,
        text_encoder: Qwen3ForCausalLM,
        tokenizer: Qwen2TokenizerFast,
        transformer: Flux2Transformer2DModel,
        is_distilled: bool = False,
    ):
        super().__init__()
        self.register_modules(
            scheduler=scheduler, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, transformer=transformer
        )
        self.register_to_config(is_distilled=is_distilled)
        self.check_parts()
        self._set_up_images(vae)

    def check_parts(self) -> None:
        """Raise ValueError, naming the part, unless these make FLUX.2 [klein] base."""
        good, last = self.title, self.text_layers[-1]
        takes_guidance = self.transformer is not None and self.transformer.config.get("guidance_embeds")
        if self.config.is_distilled or takes_guidance:
            why = "take the guidance scale (guidance_embeds" if takes_guidance else "few steps (is_distilled"
            raise ValueError(f"The model is distilled to {why} True) instead of guidance by two prompts: take {good}.")
        if self.vae is not None and not hasattr(self.vae, "bn"):
            raise ValueError(f"`vae` is a {type(self.vae).__name__} without means of its latents: take that of {good}.")
        layers = last if self.text_encoder is None else getattr(self.text_encoder.config, "num_hidden_layers", 0)
        if layers < last:
            raise ValueError(f"The text encoder has {layers} layers, and layer {last} is read: take that of {good}.")
        self.check_flux({"joint_attention_dim": (self.text_encoder, "hidden_size", len(self.text_layers))}, good)

    @property
    def text_encoders(self) -> list[Any]:
        """Qwen3."""
        return [self.text_encoder]

    @property
    def condition_shapes(self) -> dict[str, tuple[int | None, ...]]:
        """The hidden states of three layers."""
        return {"prompt_embeds": (None, self.transformer.config.joint_attention_dim)}

    @property
    def prompt_length(self) -> int:
        """Tokens that are read, those of the chat template among them."""
        return min(512, self.tokenizer.model_max_length)

    def as_chat(self, texts: list[str]) -> list[str]:
        """Texts as what a user says, and the beginning of an answer without thoughts."""
        chats = [[{"role": "user", "content": text}] for text in texts]
        how = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
        return [self.tokenizer.apply_chat_template(chat, **how) for chat in chats]

    def token_ids(self, texts: list[str]) -> list[list[int]]:
        """The tokens of texts with the chat template, all of them."""
        return self.tokenizer(self.as_chat(texts), verbose=False).input_ids

    def encode_texts(self, texts: list[str], device: torch.device, clip_skip: int | None = None) -> Conditions:
        """Hidden states `[N, L, 3 D]` of three layers side by side; those of the padding are read, too."""
        check_no_skip(clip_skip, self.title)
        settings = {"padding": "max_length", "max_length": self.prompt_length, "truncation": True}
        inputs = self.tokenizer(self.as_chat(texts), **settings, return_tensors="pt").to(device)
        wanted = {"output_hidden_states": True, "use_cache": False, "logits_to_keep": 1}
        states = self.text_encoder(inputs.input_ids, inputs.attention_mask, **wanted).hidden_states
        return {"prompt_embeds": torch.cat([states[layer] for layer in self.text_layers], dim=-1)}

    @property
    def latent_channels(self) -> int:
        """Channels of the latents, each for 2 x 2 of the autoencoder."""
        return 4 * self.vae.config.latent_channels

    @property
    def latent_side(self) -> int:
        """Pixels a side that one latent stands for."""
        return 2 * self.vae_scale_factor

    def statistics(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Means and standard deviations `[1, C, 1, 1]` of latents."""
        known = self.vae.bn
        mean, variance = (one.to(latents).view(1, -1, 1, 1) for one in (known.running_mean, known.running_var))
        return mean, (variance + known.eps).sqrt()

    def scaled(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents `[B, C, H, W]` of the autoencoder as `[B, 4 C, H / 2, W / 2]`, normalised."""
        mean, deviation = self.statistics(latents)
        return (pixel_unshuffle(latents, 2) - mean) / deviation

    def unscaled(self, latents: torch.Tensor) -> torch.Tensor:
        """The opposite of `scaled`."""
        mean, deviation = self.statistics(latents)
        return pixel_shuffle(latents * deviation + mean, 2)

    def schedule_of(self, steps: int, latents: torch.Size, timesteps: Any = None, sigmas: Any = None) -> Schedule:
        """Even steps, shifted the more, the more latents there are; lines fitted at 10 and 200 steps say how far."""
        tokens = latents[2] * latents[3]
        few, many = 8.73809524e-05 * tokens + 1.89833333, 0.00016927 * tokens + 0.45666666
        mu = many if tokens > 4300 else few + (many - few) * (steps - 10) / 190
        return replace(even(super().schedule_of(steps, latents, timesteps, sigmas)), mu=mu)

    def denoise(self, rows: torch.Tensor, t: torch.Tensor, conditions: Conditions, attention: dict | None) -> Any:
        """Velocities; positions are time, row, column and place in the prompt."""
        height, width = rows.shape[2:]
        words = torch.arange(conditions["prompt_embeds"].shape[1], device=rows.device)
        predicted = self.transformer(
            hidden_states=rows.flatten(2).transpose(1, 2),
            encoder_hidden_states=conditions["prompt_embeds"],
            timestep=(t / self.scheduler.config.num_train_timesteps).expand(len(rows)),
            img_ids=pad(image_positions(height, width, rows.device), (0, 1)),
            txt_ids=pad(words[:, None], (3, 0)),
            joint_attention_kwargs=attention,
            return_dict=False,
        )[0]
        return predicted.transpose(1, 2).unflatten(2, (height, width))
