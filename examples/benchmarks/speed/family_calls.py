"""A call of each family's pipeline beside the calls of its denoiser within it, and beside the same calls alone."""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from bare_denoiser import BareDenoiser
from family_models import LAYOUTS, outliers, pipeline_of
from timing import Comparison, Ratio, seconds_of


@dataclass(frozen=True)
class Size:
    """How wide denoisers are, and what they are called with: a call takes seconds on two cores."""

    title: str
    is_full: bool
    dtype: torch.dtype
    images: int
    side: int
    steps: int
    goal: float


SIZES = (
    Size("full width, bfloat16", True, torch.bfloat16, images=1, side=32, steps=2, goal=1.02),
    Size("small, float32", False, torch.float32, images=4, side=32, steps=8, goal=1.10),
)


def compare(rounds: int) -> list[Comparison]:
    """Both from latents to latents, with the conditions of prompts given."""
    return [_beside_bare(name, size, rounds) for size in SIZES for name in LAYOUTS]


def _beside_bare(name: str, size: Size, rounds: int) -> Comparison:
    gc.collect()
    pipe = pipeline_of(name, size.is_full)
    pipe.denoiser.to(size.dtype)
    call = outliers(pipe, name, size.images, size.side, size.steps)
    bare = BareDenoiser(pipe.denoiser, call)
    by_round = [seconds_by_steps(pipe, call, bare) for _ in range(rounds + 1)][1:]
    seconds = {thing: [one[thing] for one in by_round] for thing in by_round[0]}
    millions = sum(one.numel() for one in pipe.denoiser.parameters()) // 10**6
    counts = {"million parameters": millions, "images": size.images, "steps": size.steps, "calls": len(bare.calls)}
    ratios = Ratio("pipeline", "bare denoiser", size.goal), Ratio("pipeline", "denoiser within the pipeline")
    return Comparison(f"{name}, {size.title}", counts, size.images, "images", seconds, ratios)


def seconds_by_steps(pipe: Any, call: Callable[..., None], bare: BareDenoiser) -> dict[str, float]:
    """How long a call of the pipeline takes, the calls of its denoiser within it, and the same calls alone.

    Each of these is made after the step that it is the same as, so that whatever slows the machine slows both alike.
    """
    started, ended, alone, again = [], [], [], iter(bare.calls)

    def after_step(*_: object) -> dict:
        arguments, named = next(again)
        alone.append(seconds_of(lambda: pipe.denoiser(*arguments, **named)))
        return {}

    hooks = [
        pipe.denoiser.register_forward_pre_hook(lambda *_: started.append(time.perf_counter())),
        pipe.denoiser.register_forward_hook(lambda *_: ended.append(time.perf_counter())),
    ]
    try:
        whole = seconds_of(lambda: call(callback_on_step_end=after_step))
    finally:
        for hook in hooks:
            hook.remove()
    calls = [end - start for start, end in zip(started, ended, strict=True)]
    return {
        "pipeline": whole - sum(alone),
        "bare denoiser": sum(alone),
        "denoiser within the pipeline": sum(calls[::2]),
    }
