"""Rows a second of small UNets on a CPU, by dtype, memory format, compiler, and threads or processes."""

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context

import torch
from diffusers import UNet2DConditionModel
from timing import SEED, Comparison, Ratio, rounds_in_turn

from sona_pipeline import TINY_MODEL

UNETS = {
    "UNet of the embedded model": {},
    "12 latent channels, 8 x 8": {
        "block_out_channels": (96, 128),
        "in_channels": 12,
        "out_channels": 12,
        "sample_size": 8,
    },
}
"""What differs from the embedded model's UNet; weights are random."""
ROWS = 96
"""Rows of a call: three of each of 32 images."""
CALLS = 8
"""Calls a round, shared by the processes where there are several."""
THREADS = 2
"""Threads of one process, or processes of one thread."""
TOKENS = 32
REFERENCE = "float32, channels_last"
FORMATS = {
    "float32, contiguous": (torch.float32, torch.contiguous_format),
    REFERENCE: (torch.float32, torch.channels_last),
    "bfloat16, contiguous": (torch.bfloat16, torch.contiguous_format),
    "bfloat16, channels_last": (torch.bfloat16, torch.channels_last),
}


class UNetCalls:
    """Calls of a UNet with random weights, in float32 and channels_last unless told otherwise.

    Args:
        changes: of the settings of the embedded model's UNet.
        dtype, memory_format: of weights and inputs.
        compile: by inductor, at the first call.
    """

    def __init__(self, changes: dict, dtype=torch.float32, memory_format=torch.channels_last, compile: bool = False):
        torch.manual_seed(SEED)
        config = UNet2DConditionModel.load_config(TINY_MODEL, subfolder="unet") | changes
        self.unet = UNet2DConditionModel.from_config(config).eval().type(dtype).to(memory_format=memory_format)
        shape = (ROWS, self.unet.config.in_channels, self.unet.config.sample_size, self.unet.config.sample_size)
        self.sample = torch.randn(shape).to(dtype).to(memory_format=memory_format)
        self.prompts = torch.randn(ROWS, TOKENS, self.unet.config.cross_attention_dim).to(dtype)
        if compile:
            self.unet.compile()

    @torch.no_grad()
    def __call__(self, calls: int | None = None) -> None:
        """Make `CALLS` calls, or another number."""
        for _ in range(calls or CALLS):
            self.unet(self.sample, 1, encoder_hidden_states=self.prompts, return_dict=False)


def compare(rounds: int) -> list[Comparison]:
    """Each setting beside float32 in channels_last, as `load_pipeline` has float32 on a CPU."""
    return [_compare(title, changes, rounds) for title, changes in UNETS.items()]


def _compare(title: str, changes: dict, rounds: int) -> Comparison:
    with ExitStack() as stack:
        stack.enter_context(_threads(THREADS))
        things = {name: UNetCalls(changes, *form) for name, form in FORMATS.items()}
        things[f"{THREADS} processes of 1 thread"] = stack.enter_context(_processes(changes))
        notes = []
        try:
            things["compiled"] = _compiled(changes)
        except RuntimeError as error:
            notes.append(f"not compiled: {str(error).strip().splitlines()[0]}")
        seconds = rounds_in_turn(things, rounds)
    counts = {"rows of a call": ROWS, "calls": CALLS, "threads": THREADS}
    ratios = tuple(Ratio(name, REFERENCE) for name in things if name != REFERENCE)
    return Comparison(title, counts, ROWS * CALLS, "rows", seconds, ratios, tuple(notes))


def _compiled(changes: dict) -> UNetCalls:
    """Compiled calls; RuntimeError where inductor finds no working C++ compiler."""
    calls = UNetCalls(changes, compile=True)
    calls(1)
    return calls


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _processes(changes: dict) -> Iterator[Callable[[], None]]:
    """The calls shared by `THREADS` processes, which start before they are timed."""
    with ExitStack() as stack:
        pools = [
            stack.enter_context(ProcessPoolExecutor(1, get_context("spawn"), _start, (changes,)))
            for _ in range(THREADS)
        ]

        def work() -> None:
            for done in [pool.submit(_call, CALLS // THREADS) for pool in pools]:
                done.result()

        yield work


def _start(changes: dict) -> None:
    global _calls
    torch.set_num_threads(1)
    _calls = UNetCalls(changes)


def _call(calls: int) -> None:
    _calls(calls)
