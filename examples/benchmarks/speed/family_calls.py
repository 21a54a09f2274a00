"""A call of each family's pipeline beside the calls of its denoiser within it, and beside the same calls alone."""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from bare_denoiser import BareDenoiser
from family_models import LAYOUTS, outliers, pipeline_of
from timing import Comparison, Ratio, rounds_in_turn


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
    inside: list[float] = []
    things = {"pipeline": lambda: inside.append(seconds_inside(pipe.denoiser, call)), "bare denoiser": bare}
    seconds = rounds_in_turn(things, rounds)
    seconds["denoiser within the pipeline"] = inside[-rounds:]
    millions = sum(one.numel() for one in pipe.denoiser.parameters()) // 10**6
    counts = {"million parameters": millions, "images": size.images, "steps": size.steps, "calls": len(bare.calls)}
    ratios = Ratio("pipeline", "bare denoiser", size.goal), Ratio("pipeline", "denoiser within the pipeline")
    return Comparison(f"{name}, {size.title}", counts, size.images, "images", seconds, ratios)


def seconds_inside(denoiser: torch.nn.Module, call: Callable[[], None]) -> float:
    """How long the calls of a denoiser take within a call of its pipeline; what else runs here slows both alike."""
    started: list[float] = []
    ended: list[float] = []
    hooks = [
        denoiser.register_forward_pre_hook(lambda *_: started.append(time.perf_counter())),
        denoiser.register_forward_hook(lambda *_: ended.append(time.perf_counter())),
    ]
    try:
        call()
    finally:
        for hook in hooks:
            hook.remove()
    return sum(ended) - sum(started)
