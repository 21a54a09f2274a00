"""Schedules of noise: where images join them, what a prediction means there, and which schedulers can be used."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, PNDMScheduler
from diffusers.utils import logging

from sona_pipeline.pipelines.arguments import Generators

logger = logging.get_logger(__name__)
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
