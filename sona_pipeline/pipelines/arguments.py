"""Numbers and generators that a call is given, checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

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
