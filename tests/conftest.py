"""What every test starts from: few threads, repeatable examples, tiny random pipelines."""

import os
from pathlib import Path

# Three workers share two cores (setup.cfg), as many tests wait: more threads would get into each other's way.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Servers of tests are here and speak plainly: no client has to read all certificates of the world.
os.environ["SSL_CERT_DIR"] = str(Path(__file__).parent)

import hypothesis
import pytest
import torch
from tiny_pipelines import build

from sona_pipeline.pipelines.families.stable_diffusion import SONAPipeline

# What outlasts a loss of power is a matter of tests/generation/test_power_loss.py; no other test waits for disks.
os.fsync = lambda descriptor: None

# The same examples in every run, and none refused for being slow on a busy machine.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture
def tiny_components() -> dict:
    """Components of a random pipeline in float32, with DDIM."""
    return build()


@pytest.fixture
def tiny_pipe(tiny_components) -> SONAPipeline:
    pipe = SONAPipeline(**tiny_components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def make_pipe():
    """Factory of random pipelines; takes the arguments of `build`.

    They compute in float64 unless told otherwise: a mask is a step function of the noise estimates, so that the
    rounding of float32 could turn an entry over.
    """

    def make(dtype: torch.dtype = torch.float64, **options) -> SONAPipeline:
        pipe = SONAPipeline(**build(dtype=dtype, **options))
        pipe.set_progress_bar_config(disable=True)
        return pipe

    return make
