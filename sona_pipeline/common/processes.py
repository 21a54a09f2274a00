"""The processes that share a job: those that `accelerate launch` or torchrun started, or this one alone."""

from __future__ import annotations

import os
import sys
import threading
import time
from datetime import timedelta

import torch
from accelerate import PartialState
from accelerate.utils import get_cpu_distributed_information

from sona_pipeline.common.messages import brief

FOREVER = timedelta(days=30)
"""How long processes that have met wait for each other."""
SECONDS_TO_MEET, SECONDS_UNTIL_SAID = 300.0, 5.0
"""How long processes wait for the others at the start, and after how long they say so."""
SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "WORLD_SIZE")
"""Variables that accelerate takes for the number of processes, the first first."""
_HERE = "sona/here"
_WAY_OUT = (
    "start all of them, by `accelerate launch` or torchrun; or, for one process, unset WORLD_SIZE, RANK, LOCAL_RANK and"
    " what else a cluster's shell has left"
)


def process_state(cpu: bool = False) -> PartialState:
    """This process among those that were started together; once met, they wait for each other as long as it takes.

    Args:
        cpu: compute on the CPU even if there is an accelerator.

    Raises:
        ValueError: the environment announces other processes, and they do not come or it makes no sense.
    """
    cpu = cpu or not torch.accelerator.is_available()
    if PartialState._shared_state or not _is_announced(cpu):
        return PartialState(cpu=cpu, timeout=FOREVER)
    met = _meet(cpu)
    try:
        state = PartialState(cpu=cpu, timeout=FOREVER)
        state.wait_for_everyone()  # the first has the store: if it ended now, others could not join the group
        return state
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"the processes that the environment announces cannot meet ({error}): {_WAY_OUT}") from error
    finally:
        del met  # the group has it now


def _is_announced(cpu: bool) -> bool:
    """Whether accelerate takes this process for one of several, as the environment is."""
    numbers = {}
    for name in (*SIZES, "LOCAL_RANK"):
        if text := os.environ.get(name):
            try:
                numbers[name] = int(text)
            except ValueError:
                raise ValueError(f"{name} is {text!r} in the environment, which is no number: {_WAY_OUT}") from None
    sizes = [numbers[name] for name in SIZES if name in numbers]
    return numbers.get("LOCAL_RANK", -1) != -1 or (cpu and bool(sizes) and sizes[0] > 1)


def _meet(cpu: bool) -> object:
    """Wait until all processes are there, and give the store that they met at; Ctrl-C ends the wait."""
    if cpu:
        known = get_cpu_distributed_information()
        os.environ |= {"RANK": str(known.rank), "WORLD_SIZE": str(known.world_size)}
        os.environ.setdefault("MASTER_PORT", "29500")
    came: list[object] = []
    thread = threading.Thread(target=_announce, args=[came], daemon=True)
    thread.start()
    thread.join(SECONDS_UNTIL_SAID)
    others = f"the other processes of WORLD_SIZE={os.environ.get('WORLD_SIZE')}"
    if thread.is_alive():
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        print(f"Waiting for {others} at {place}, for {SECONDS_TO_MEET:.0f} s at most.", file=sys.stderr, flush=True)
    while thread.is_alive():  # up to its end, which is not to come while Python ends
        thread.join(1)
    if isinstance(came[0], Exception):
        raise ValueError(f"{others} cannot be met ({brief(came[0])}): {_WAY_OUT}") from came[0]
    return came[0]


def _announce(came: list[object]) -> None:
    """Meet the others, and note the store or what is wrong."""
    try:
        limit = timedelta(seconds=SECONDS_TO_MEET)
        store, _, count = next(iter(torch.distributed.rendezvous("env://", timeout=limit)))
        deadline = time.monotonic() + SECONDS_TO_MEET
        store.add(_HERE, 1)
        while (here := store.add(_HERE, 0)) < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"after {SECONDS_TO_MEET:.0f} s, {here} of {count} are there")
            time.sleep(0.05)
        came.append(store)
    except Exception as error:
        came.append(error)
