"""Processes that are announced by the environment, as they are left over from a cluster's shell."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from warm_python import package_python

CODE = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background does not hear it otherwise
import sona_pipeline.common.processes as processes
processes.SECONDS_TO_MEET, processes.SECONDS_UNTIL_SAID = {seconds}, 0.2
print(processes.process_state(cpu=True).num_processes)
"""
JOINS_LATE = """
import time
import sona_pipeline.common.processes as processes
class Late(processes.PartialState):
    def __init__(self, **options):
        super().__init__(**options)
        time.sleep({delay})
        print(time.monotonic())
processes.PartialState = Late
processes.process_state(cpu=True)
print(time.monotonic())
"""
"""Prints when a process has joined, and when it goes on."""
ANNOUNCED = {"WORLD_SIZE": "3", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost"}


def environment(**announced: str) -> dict[str, str]:
    names = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "MASTER_PORT", *ANNOUNCED)
    return {name: value for name, value in os.environ.items() if name not in names} | announced


def run(seconds: float = 2, **announced: str) -> subprocess.CompletedProcess:
    code = CODE.format(seconds=seconds)
    return subprocess.run([package_python(), "-c", code], env=environment(**announced), capture_output=True, text=True)


@pytest.fixture
def port() -> str:
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return str(one.getsockname()[1])


@pytest.mark.parametrize("rank", ["0", "2"])
def test_processes_that_do_not_come_are_waited_for_with_a_word_and_not_for_ever(port, rank):
    done = run(**ANNOUNCED | {"RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": port})
    assert done.returncode == 1
    assert f"Waiting for the other processes of WORLD_SIZE=3 at localhost:{port}, for 2 s at most." in done.stderr
    assert "ValueError: the other processes of WORLD_SIZE=3 cannot be met" in done.stderr
    assert "unset WORLD_SIZE, RANK, LOCAL_RANK" in done.stderr


@pytest.mark.parametrize(
    ("announced", "message"),
    [
        ({"WORLD_SIZE": "3"}, "WORLD_SIZE=3 cannot be met"),
        ({"PMI_SIZE": "3", "PMI_RANK": "1"}, "WORLD_SIZE=3 cannot be met"),
        ({"LOCAL_RANK": "0"}, "WORLD_SIZE=1 cannot be met"),
        ({"WORLD_SIZE": "many"}, "WORLD_SIZE is 'many' in the environment, which is no number"),
    ],
)
def test_an_environment_that_makes_no_sense_is_refused_at_once(announced, message):
    done = run(60, **announced)
    assert done.returncode == 1 and message in done.stderr.splitlines()[-1]


def test_one_process_runs_whatever_slurm_says(port):
    assert run(SLURM_NTASKS="4", SLURM_PROCID="1").stdout == "1\n"
    assert run(**ANNOUNCED | {"WORLD_SIZE": "1", "MASTER_PORT": port}).stdout == "1\n"


def test_processes_that_come_late_are_met(port):
    members = []
    for rank in "210":
        known = environment(**ANNOUNCED | {"RANK": rank, "LOCAL_RANK": rank, "MASTER_PORT": port})
        command = [package_python(), "-c", CODE.format(seconds=120)]
        members.append(subprocess.Popen(command, env=known, stdout=subprocess.PIPE, text=True))
        time.sleep(1)
    assert [member.communicate()[0] for member in members] == ["3\n"] * 3


def test_no_process_goes_on_before_all_have_joined(port):
    """The first has the store: were it to end before, others could not join."""
    members = []
    for rank, delay in enumerate((0, 1, 0)):
        known = environment(**ANNOUNCED | {"RANK": f"{rank}", "LOCAL_RANK": f"{rank}", "MASTER_PORT": port})
        command = [package_python(), "-c", JOINS_LATE.format(delay=delay)]
        members.append(subprocess.Popen(command, env=known, stdout=subprocess.PIPE, text=True))
    joined, went_on = zip(*(map(float, member.communicate()[0].split()) for member in members))
    assert min(went_on) >= max(joined)


def test_ctrl_c_ends_the_wait(port):
    command = [sys.executable, "-c", CODE.format(seconds=120)]
    known = environment(**ANNOUNCED | {"MASTER_PORT": port})
    with subprocess.Popen(command, env=known, stderr=subprocess.PIPE, text=True) as waiting:
        while "Waiting for" not in waiting.stderr.readline():
            assert waiting.poll() is None
        waiting.send_signal(signal.SIGINT)
        assert "KeyboardInterrupt" in waiting.stderr.read()
        assert waiting.wait(20) in (1, 130, -signal.SIGINT)
