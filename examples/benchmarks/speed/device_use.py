"""Memory and use of a GPU."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Peak:
    """The most memory that tensors have had on the GPU since it was made; None where there is no CUDA."""

    def __init__(self):
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    def mebibytes(self) -> int | None:
        return torch.cuda.max_memory_allocated() >> 20 if torch.cuda.is_available() else None


@contextmanager
def sampled_use() -> Iterator[list[int]]:
    """How busy NVML says the GPU is, in percent, ten times a second; nothing where it does not say."""
    samples: list[int] = []
    ended = threading.Event()

    def sample() -> None:
        try:
            while not ended.wait(0.1):
                samples.append(torch.cuda.utilization())
        except Exception as error:  # NVML and PyTorch have errors of their own
            print(f"the use of the GPU is not measured: {error}", file=sys.stderr)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()
