"""A call of each family's pipeline beside bare calls of its denoiser, of the very same rows."""

import gc
from dataclasses import dataclass

from bare_denoiser import BareDenoiser
from family_models import LAYOUTS, outliers, pipeline_of
from timing import Comparison, Ratio, rounds_in_turn


@dataclass(frozen=True)
class Size:
    """How wide denoisers are, and what they are called with: a call takes seconds on two cores."""

    title: str
    is_full: bool
    images: int
    side: int
    steps: int
    goal: float


SIZES = (
    Size("full width, random weights", True, images=1, side=32, steps=2, goal=1.02),
    Size("small, random weights", False, images=4, side=32, steps=8, goal=1.10),
)


def compare(rounds: int) -> list[Comparison]:
    """Both from latents to latents, with the conditions of prompts given, in float32."""
    return [_beside_bare(name, size, rounds) for size in SIZES for name in LAYOUTS]


def _beside_bare(name: str, size: Size, rounds: int) -> Comparison:
    gc.collect()
    pipe = pipeline_of(name, size.is_full)
    call = outliers(pipe, name, size.images, size.side, size.steps)
    bare = BareDenoiser(pipe.denoiser, call)
    seconds = rounds_in_turn({"pipeline": call, "bare denoiser": bare}, rounds)
    millions = sum(one.numel() for one in pipe.denoiser.parameters()) // 10**6
    counts = {"million parameters": millions, "images": size.images, "steps": size.steps, "calls": len(bare.calls)}
    ratio = Ratio("pipeline", "bare denoiser", at_most=size.goal)
    return Comparison(f"{name}, {size.title}", counts, size.images, "images", seconds, (ratio,))
