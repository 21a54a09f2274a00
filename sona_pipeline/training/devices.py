"""What a training runs on: accelerate's part of it, and whether a machine can do what it is asked for."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import GradientAccumulationPlugin

from sona_pipeline.training.settings import Running

SHARED_MEMORY = Path("/dev/shm")
BATCHES_AHEAD = 2
"""Batches that torch's loader keeps ready for each worker."""


def new_accelerator(running: Running, accumulation: int, folder: Path | None) -> Accelerator:
    """The parts of accelerate for a training that writes to `folder`; accumulation is ours, whatever its variables say.

    Raises:
        ValueError: see `check_running`.
    """
    check_running(running, folder)
    if AcceleratorState._shared_state.get("_mixed_precision", _precision(running)) != _precision(running):
        AcceleratorState._reset_state()  # of a training before this one, whose precision would stay
    return Accelerator(
        cpu=_is_on_cpu(running),
        mixed_precision=_precision(running),
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=accumulation),
        log_with=running.tracker,
        project_dir=folder,
    )


def check_running(running: Running, folder: Path | None) -> None:
    """Raise ValueError for a precision that the device does not have, or a tracker that is not installed.

    Args:
        running: how the training is computed.
        folder: where it writes to, if anywhere.
    """
    if _precision(running) == "fp16" and _is_on_cpu(running):
        raise ValueError("`mixed_precision` is 'fp16', which a CPU does not compute in: use 'bf16', 'no', or a GPU")
    if running.tracker is not None:
        _check_tracker(running.tracker, folder)


def _precision(running: Running) -> str:
    return running.mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")


def _is_on_cpu(running: Running) -> bool:
    return running.cpu or not torch.accelerator.is_available()


def _check_tracker(tracker: str, folder: Path | None) -> None:
    known, installed = ["all", *sorted(LOGGER_TYPE_TO_CLASS)], sorted(str(name) for name in get_available_trackers())
    if tracker not in known:
        raise ValueError(f"`tracker` is {tracker!r}, but has to be one of {', '.join(known)}")
    if not installed or (tracker != "all" and tracker not in installed):
        others = f", or take one that is: {', '.join(installed)}" if installed else ", or leave it out"
        name = "tensorboard" if tracker == "all" else tracker.replace("_", "-")
        raise ValueError(f"`tracker` is {tracker!r}, which is not installed: pip install {name}{others}")
    if folder is None:
        raise ValueError(f"`tracker` is {tracker!r}, but a training without an output folder is not tracked: give one")


def check_shared_memory(workers: int, batch_bytes: int) -> None:
    """Raise ValueError if the batches that workers hand over do not fit into the memory that processes share.

    Args:
        workers: processes that decode images.
        batch_bytes: size of one batch.
    """
    needed = workers * BATCHES_AHEAD * batch_bytes
    if not needed or not SHARED_MEMORY.is_dir():
        return
    free = shutil.disk_usage(SHARED_MEMORY).free
    if needed > free:
        raise ValueError(
            f"{workers} workers need {needed / 2**20:.1f} MiB of shared memory, but {SHARED_MEMORY} has"
            f" {free / 2**20:.1f} MiB left: use fewer `workers` or a smaller `batch_size`, or make it larger"
            " (`docker run --shm-size`)"
        )
