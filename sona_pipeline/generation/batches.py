"""The batches of a run, made as fast as the machine can: in stages that overlap, or in processes side by side."""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from sona_pipeline.common.stages import ahead
from sona_pipeline.data.outlier_writer import OutlierWriter
from sona_pipeline.generation.make import FinishedBatch, OutlierMaker, Work, image_form
from sona_pipeline.generation.plan import Batch
from sona_pipeline.generation.settings import GenerationSettings
from sona_pipeline.pipelines.core import SONAMixin

DEPTH = 2
"""Batches that reading and writing may be ahead of or behind what makes them."""
SMALL = 64
"""Images up to this side come in larger batches, and on the CPU in processes side by side."""
WORTHWHILE = 4
"""Batches of a process, at least: they take unequal times, and with fewer one process would often wait for another."""
_DIES_WITH_ITS_PARENT = 1
"""PR_SET_PDEATHSIG of Linux's prctl."""


def default_batch_size(pipe: SONAMixin, settings: GenerationSettings) -> int:
    """16 images; 64 small ones, since the calls themselves would else take much of the time."""
    return 64 if image_form(pipe, settings.size)[0] <= SMALL else 16


def make_batches(maker: OutlierMaker, writer: OutlierWriter, batches: Sequence[Batch]) -> Iterator[int]:
    """Make and commit batches, and give how many images each had.

    On the CPU, networks for small images gain little from more threads: there each thread becomes a process of its own,
    where the system can fork one. Elsewhere reading, encoding, decoding and writing overlap with the denoising.

    Raises:
        MemoryError: a process was killed, as the system does when memory runs out.
        OSError, ValueError, FloatingPointError: as the maker and the writer do.
    """

    def commit(batch: FinishedBatch) -> int:
        writer.commit(batch.name, batch.samples, batch.rejects)
        return len(batch.samples) + len(batch.rejects)

    count = processes_for(maker, len(batches))
    vae_depth = 0 if maker.pipe.device.type == "cpu" else 1
    finished = _by_processes(maker, batches, count) if count > 1 else by_stages(maker, batches, vae_depth)
    with closing(finished):
        yield from ahead(commit, finished, DEPTH)


def processes_for(maker: OutlierMaker, batches: int) -> int:
    """How many processes make so many batches; 1 is this one."""
    if maker.pipe.device.type != "cpu" or maker.size > SMALL or sys.platform != "linux":
        return 1
    return max(1, min(torch.get_num_threads(), batches // WORTHWHILE))


def by_stages(maker: OutlierMaker, batches: Sequence[Batch], vae_depth: int) -> Generator[FinishedBatch, None, None]:
    """Batches from stages that overlap.

    With `vae_depth` 1 the VAE has threads of its own, too, which keep the queue of an accelerator full; on the CPU
    they would only take the cores from the UNet.
    """
    read = ahead(maker.read, batches, DEPTH)
    encoded = ahead(maker.encode, read, vae_depth)
    denoised = ahead(maker.denoise, encoded, 0)
    decoded = ahead(maker.decode, denoised, vae_depth)
    with closing(read), closing(encoded), closing(denoised), closing(decoded):
        yield from ahead(maker.finish, decoded, DEPTH)


def _by_processes(maker: OutlierMaker, batches: Sequence[Batch], count: int) -> Generator[FinishedBatch, None, None]:
    """Batches from forked processes of one thread each, in the order in which they come.

    Images are read here, since what reads them may have threads or connections that do not outlive a fork.
    """
    ordered = short_ones_last(batches, maker.plan.stop_steps, WORTHWHILE * count // 2)
    read = ahead(maker.read, ordered, DEPTH)
    loader = DataLoader(
        _Making(maker),
        batch_size=None,
        sampler=read,
        num_workers=count,
        prefetch_factor=1,
        in_order=False,
        multiprocessing_context="fork",
        worker_init_fn=_begin,
        generator=torch.Generator(),  # else it draws from torch's own
    )
    try:
        with closing(read):
            for outcome in loader:
                if isinstance(outcome, Exception):
                    raise outcome
                yield outcome
    except RuntimeError as error:
        if "DataLoader worker" not in str(error) or "Caught" in str(error):
            raise
        raise MemoryError(
            f"one of the {count} processes that make outliers was killed, as when memory runs out: lower --batch-size,"
            " or set OMP_NUM_THREADS to fewer processes; what is done is kept"
        ) from error


def short_ones_last(batches: Sequence[Batch], stop_steps: np.ndarray, number: int) -> list[Batch]:
    """The batches with the `number` shortest ones at the end, so that processes end at about the same time."""
    by_length = sorted(batches, key=lambda batch: int(stop_steps[batch.indices].sum()))
    last = {batch.name for batch in by_length[:number]}
    return [*(batch for batch in batches if batch.name not in last), *reversed(by_length[:number])]


class _Making(Dataset):
    """Finished batches by those that were read, or the errors that the maker raises for bad input."""

    def __init__(self, maker: OutlierMaker):
        self.maker = maker

    def __getitem__(self, work: Work) -> FinishedBatch | Exception:
        try:
            return self.maker.finish(self.maker.decode(self.maker.denoise(self.maker.encode(work))))
        except (OSError, ValueError, FloatingPointError, MemoryError) as error:
            return _sendable(error)


def _sendable(error: Exception) -> Exception:
    """The error, or one with its sentence where it cannot go from process to process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return OSError(str(error))
    return error


def _begin(_: int) -> None:
    """End with the process that began this one, however it ends; and leave tokenizers without threads."""
    ctypes.CDLL(None).prctl(_DIES_WITH_ITS_PARENT, signal.SIGKILL)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
