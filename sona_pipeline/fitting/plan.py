"""What a run would do, with times and disk, from short measurements on this machine."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import chain, islice, repeat
from pathlib import Path
from typing import NamedTuple

from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from sona_pipeline.common.names import expanded, unique_names
from sona_pipeline.data.outlier_set import OutlierPairs, read_rejects, read_rows
from sona_pipeline.fitting.both import FOLDERS, ORIGINAL, SONA, TRAINED, without_outliers
from sona_pipeline.fitting.check_classes import held_out_classes
from sona_pipeline.fitting.job import CHECKS, GENERATED, check_folder
from sona_pipeline.fitting.sources import FitSources
from sona_pipeline.generation.estimate import Estimate, estimate
from sona_pipeline.generation.generate import make_plan, settled_batch_size
from sona_pipeline.generation.make import image_form
from sona_pipeline.pipelines.core import SONAMixin
from sona_pipeline.training.devices import new_accelerator
from sona_pipeline.training.items import TrainingSets
from sona_pipeline.training.loop import Training

PIXELS = 1 << 18
"""Of the images that are computed together in a measurement on a CPU: more would take long, and tell no more."""
STEPS = 2
"""Of a training that are timed, after one to warm up."""
BACKWARD = 2
"""Times that the way back through a network takes, of the way forth."""
KEPT = 3
"""Times that weights are kept while they are trained: with the optimizer's momentum, and the best ones."""


@dataclass(frozen=True)
class Step:
    """A step of a run: what is done, in how many seconds, and how many bytes it leaves; or that it is done."""

    name: str
    what: str
    seconds: float
    bytes: int = 0
    is_done: bool = False


class Costs(NamedTuple):
    """Seconds of an image in an epoch with outliers and in one without, and the bytes of the weights."""

    with_outliers: float
    plain: float
    weights: int

    @property
    def forward(self) -> float:
        """Seconds of an image on its way through the network."""
        return self.plain / (1 + BACKWARD)


@dataclass(frozen=True)
class FitPlan:
    """The steps of a run.

    Attributes:
        steps: in their order.
        free_bytes: on the disk of its folder; None if that is not known.
        device: what they were measured on.
    """

    steps: Sequence[Step]
    free_bytes: int | None
    device: str

    @property
    def seconds(self) -> float:
        """Of what is left to do."""
        return sum(step.seconds for step in self.steps)

    @property
    def bytes(self) -> int:
        """Of the files that are still to be written."""
        return sum(step.bytes for step in self.steps if not step.is_done)

    def check(self, most_hours: float) -> None:
        """Raise ValueError if a run would take longer than so many hours, or more disk than there is."""
        if self.seconds > 3600 * most_hours:
            raise ValueError(
                f"this would take about {self.seconds / 3600:.0f} hours on this {self.device}, more than --most-hours"
                f" {most_hours:g}: take a GPU, fewer images or classes to check, or a smaller model; or raise it"
            )
        if self.free_bytes is not None and self.bytes > self.free_bytes:
            raise ValueError(
                f"this would take about {decimal(self.bytes)} of disk, and {decimal(self.free_bytes)} are free: make"
                " room, or choose another folder"
            )

    def table(self) -> Table:
        """The plan for the console."""
        table = Table("step", "what", title=f"The plan, measured on this {self.device}")
        table.add_column("time", justify="right")
        table.add_column("disk", justify="right")
        for step in self.steps:
            taken = "done" if step.is_done else _time(step.seconds)
            table.add_row(step.name, escape(step.what), taken, decimal(step.bytes) if step.bytes else "")
        table.add_section()
        free = "" if self.free_bytes is None else f"{decimal(self.free_bytes)} are free"
        table.add_row("all", free, _time(self.seconds), decimal(self.bytes))
        return table


def _time(seconds: float) -> str:
    return f"about {timedelta(seconds=round(seconds))}"


def plan_fit(sources: FitSources, pipe: SONAMixin, output: str | Path, check_classes: int) -> FitPlan:
    """What `fit_detector` would do; nothing is written.

    Some steps of generation and training are made, to see what all of them cost. What is done already costs nothing.

    Raises:
        ValueError: the folder was made from other images or with other settings, or a network cannot be built or
            trained on.
    """
    output = expanded(output)
    check_folder(sources, pipe, output)
    costs, share = _training_costs(sources), _share_left(sources, output / GENERATED)
    made = _cost_of_outliers(sources, pipe, output / GENERATED)
    names = held_out_classes(sources.train.classes, check_classes, sources.training.seed)
    seconds, size = share * made.seconds, round(share * made.bytes)
    steps = [Step("generate", f"{len(sources.train)} outliers", seconds, size, share == 0)]
    steps += [_checks_step(names, sources, costs, output / CHECKS)] if names else []
    steps += _detector_steps(sources, costs, output)
    tested = sum(len(images) for _, _, images in sources.sets)
    judged = len(FOLDERS) if sources.classifier else len(TRAINED)
    steps.append(Step("evaluate", f"{tested} test images", judged * tested * costs.forward))
    return FitPlan(steps, made.free_bytes, pipe.device.type)


def _checks_step(names: Sequence[str], sources: FitSources, costs: Costs, folder: Path) -> Step:
    """All trainings without a class."""
    count, held, epochs = len(sources.train), len(sources.validation), sources.training.epochs
    left = sum(label not in names for label in map(sources.train.label_name, range(count))) / count
    share_of_fold = 1 - (1 - left) / len(names)
    both = epochs * (count * (costs.with_outliers + costs.plain) + 2 * held * costs.forward) * share_of_fold
    what = f"without {', '.join(names)} in turn, {2 * len(names)} trainings"
    open_ones = sum(not _is_trained(folder / name) for name in unique_names(names).values())
    return Step("check classes", what, open_ones * both, 2 * open_ones * costs.weights, not open_ones)


def _detector_steps(sources: FitSources, costs: Costs, output: Path) -> Iterator[Step]:
    """The trainings on all classes, and what a classifier that is kept takes besides."""
    count, held, epochs = len(sources.train), len(sources.validation), sources.training.epochs
    for name in TRAINED:
        seconds = epochs * (count * (costs.with_outliers if name == SONA else costs.plain) + held * costs.forward)
        what = f"{epochs} epochs {'with' if name == SONA else 'without'} outliers"
        yield _detector_step("train", name, what, seconds, KEPT * costs.weights, output)
    if sources.classifier:
        what = "the classifier as it is"
        yield _detector_step("calibrate", ORIGINAL, what, held * costs.forward, costs.weights, output)


def _detector_step(verb: str, name: str, what: str, seconds: float, size: int, output: Path) -> Step:
    is_done = (output / FOLDERS[name] / "config.json").exists()
    return Step(f"{verb} {FOLDERS[name]}", what, 0 if is_done else seconds, size, is_done)


def _is_trained(folder: Path) -> bool:
    """Whether both detectors are in a folder."""
    return all((folder / FOLDERS[name] / "config.json").exists() for name in TRAINED)


def _share_left(sources: FitSources, folder: Path) -> float:
    """The share of the outliers that is still to be made."""
    if not (folder / "settings.json").exists():
        return 1.0
    tried = sum(1 for _ in chain(read_rows(folder), read_rejects(folder)))
    return max(0.0, 1 - tried / len(sources.train))


def _cost_of_outliers(sources: FitSources, pipe: SONAMixin, folder: Path) -> Estimate:
    """What all outliers would cost."""
    plan = make_plan(sources.train, pipe, sources.generation, sources.writing)
    batch_size = settled_batch_size(pipe, sources.generation, sources.writing, folder)
    if pipe.device.type == "cpu":
        batch_size = max(1, min(batch_size, PIXELS // image_form(pipe, sources.generation.size)[0] ** 2))
    return estimate(plan, pipe, folder, batch_size, sources.writing)


def _training_costs(sources: FitSources) -> Costs:
    """Costs by a few steps of both trainings.

    The images themselves stand for their outliers and round trips.
    """
    images, settings = sources.train, sources.training
    rounds = images if sources.writing.reconstructions else None
    pairs = OutlierPairs(images, images, rounds, (1.0,) * len(images))
    accelerator = new_accelerator(sources.running, settings.accumulation, None)
    batch = settings.batch_size
    if accelerator.device.type == "cpu":
        batch = max(2, min(batch, PIXELS // settings.image_size**2))
    costs, parameters = [], 0
    for how, outliers in ((settings, pairs), (without_outliers(settings), None)):
        sets = TrainingSets(images, sources.validation, outliers)
        sets.check(how.min_strength)
        how = replace(how, batch_size=batch, accumulation=1)
        training = Training(sets, how, accelerator, classifier=sources.classifier)
        costs.append(_seconds_of_image(training))
        parameters = sum(one.numel() for one in training.detector.parameters())
    return Costs(costs[0], costs[1], 4 * parameters)


def _seconds_of_image(training: Training) -> float:
    """Of some steps, with the reading of their images, but for those of the first."""
    training.model.train()
    started, count = 0.0, 0
    for number, batch in enumerate(islice(chain.from_iterable(repeat(training.loader)), 1 + STEPS)):
        batch.pop("rejects")
        count += len(batch["label"]) if number else 0
        training.step(batch, 0.0)["loss"].item()
        started = started or time.perf_counter()
    return (time.perf_counter() - started) / count
