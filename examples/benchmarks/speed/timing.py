"""Things timed in turn, and how many times as long one takes as another."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median

import torch

SEED = 0
"""Of all random numbers of these benchmarks."""


@dataclass(frozen=True)
class Ratio:
    """How many times as long `of` takes as `to`, and what that should be at most, or at least."""

    of: str
    to: str
    at_most: float | None = None
    at_least: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Things that do the same work, timed in turn.

    Attributes:
        title: what is compared.
        counts: the size of the work, by name: images, batch size, steps, ...
        amount, unit: how much work one round of each thing is, for the speed: 32 "images", say.
        seconds: of each thing, by round.
        ratios: what is to be said of them.
        notes: what could not be timed, and why.
    """

    title: str
    counts: dict[str, int]
    amount: int
    unit: str
    seconds: dict[str, list[float]]
    ratios: tuple[Ratio, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def as_dict(self) -> dict:
        """All of it with medians, ranges, speeds and ratios, for a JSON file."""
        things = {
            name: {"by_round": values, **spread(values), f"{self.unit} a second": self.amount / median(values)}
            for name, values in self.seconds.items()
        }
        return {
            "title": self.title,
            "counts": self.counts,
            "unit": self.unit,
            "seconds": things,
            "ratios": [self._ratio(ratio) for ratio in self.ratios],
            "notes": list(self.notes),
        }

    def _ratio(self, ratio: Ratio) -> dict:
        values = ratios_by_round(self.seconds[ratio.of], self.seconds[ratio.to])
        row = {"of": ratio.of, "to": ratio.to, "by_round": values, **spread(values)}
        if ratio.at_most is not None:
            row |= {"at_most": ratio.at_most, "is_met": row["median"] <= ratio.at_most}
        if ratio.at_least is not None:
            row |= {"at_least": ratio.at_least, "is_met": row["median"] >= ratio.at_least}
        return row


def rounds_in_turn(things: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each thing by round, after one round that warms up and does not count.

    Each round starts with another thing, so that none is always timed after the same one.
    """
    names, times = list(things), {name: [] for name in things}
    for number in range(rounds + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            took = seconds_of(things[name])
            if number:
                times[name].append(took)
    return times


def seconds_of(work: Callable[[], object]) -> float:
    """How long a call takes, until the device has finished, too."""
    _wait_for_device()
    started = time.perf_counter()
    work()
    _wait_for_device()
    return time.perf_counter() - started


def ratios_by_round(of: list[float], to: list[float]) -> list[float]:
    """How many times as long the one took as the other in the same round."""
    return [one / other for one, other in zip(of, to, strict=True)]


def spread(values: list[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": median(values), "min": min(values), "max": max(values)}


def _wait_for_device() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
