"""Generation as it is run: in processes of its own, which are killed, stopped, run twice, or run out of disk."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from warm_python import package_python
from warm_runs import Run, succeed

from sona_pipeline.data import sample
from sona_pipeline.data.outlier_set import read_rows

COUNT = 40
OPTIONS = ["--model", "tiny", "--steps", "16", "--batch-size", "2"]
THREADS = 2
"""So that a run forks two processes, which make the batches."""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """An image folder of the sample's images, whose names have spaces and letters of many alphabets."""
    root = tmp_path_factory.mktemp("dâta 数据")
    images = sample.id_images("train")
    for i in range(COUNT):
        folder = root / f"{images.label_name(i)} ñ"
        folder.mkdir(exist_ok=True)
        images.image(i).save(folder / f"image {i} ø.png")
    return root


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory) -> dict[str, dict[str, bytes]]:
    """What runs that nothing disturbs leave, by format."""
    found = {}
    for form in ("folder", "parquet"):
        folder = tmp_path_factory.mktemp(form) / "set"
        succeed(command(data, folder, "--format", form), THREADS)
        found[form] = contents(folder)
    return found


def command(data: Path, output: Path, *options: str) -> list[str]:
    paths = ["--data", str(data), "--output", str(output)]
    return ["generate", *paths, *OPTIONS, *options]


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a set but the lock, and the notes on the run."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    found.pop(".lock", None)
    found["settings.json"] = json.loads(found["settings.json"]) | {"notes": None}
    return found


def wait_for_batches(run: Run, folder: Path, count: int) -> None:
    """Wait until a run has committed `count` batches."""
    deadline = time.monotonic() + 180
    while len(list((folder / ".parts").glob("*.jsonl"))) < count:
        assert run.poll() is None, "the run ended before it could be stopped"
        assert time.monotonic() < deadline, "the run did not get going"
        time.sleep(0.01)


def children(parent: int) -> list[Path]:
    """Folders in /proc of the processes that a process has begun."""
    if sys.platform != "linux":
        return []
    return [Path("/proc", child) for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def wait_until_gone(processes: list[Path]) -> None:
    """Wait until the processes have ended, which they do at once with the one that began them."""
    deadline = time.monotonic() + 2
    while any(process.exists() and ") Z " not in (process / "stat").read_text() for process in processes):
        assert time.monotonic() < deadline, "a process outlives the run that began it"
        time.sleep(0.01)


@pytest.mark.parametrize("form", ["folder", "parquet"])
def test_runs_killed_at_random_moments_end_with_the_set_of_an_undisturbed_run(data, undisturbed, tmp_path, form):
    chance = random.Random(form)
    folder = tmp_path / "set"
    for committed in (1, 8):
        run = Run(command(data, folder, "--format", form), THREADS)
        wait_for_batches(run, folder, committed)
        time.sleep(chance.uniform(0, 0.3))
        forked = children(run.pid)
        assert len(forked) == (2 if sys.platform == "linux" else 0)
        run.kill()
        wait_until_gone(forked)
        assert 0 < len(list(read_rows(folder))) < COUNT
    succeed(command(data, folder, "--format", form), THREADS)
    assert contents(folder) == undisturbed[form]


def test_run_stopped_by_the_keyboard_says_so_and_goes_on_later(data, undisturbed, tmp_path):
    folder = tmp_path / "set"
    run = Run(command(data, folder), THREADS)
    wait_for_batches(run, folder, 2)
    run.send_signal(signal.SIGSTOP)  # so that it does not come to its end while the second one starts

    second = Run(command(data, folder), THREADS)
    assert second.wait() == 2
    assert f"another run is writing to {folder}" in second.errors
    assert "Traceback" not in second.errors

    run.send_signal(signal.SIGINT)
    run.send_signal(signal.SIGCONT)
    assert run.wait(timeout=60) == 130
    assert "the same command goes on from there" in run.output
    assert "Traceback" not in run.errors
    succeed(command(data, folder), THREADS)
    assert contents(folder) == undisturbed["folder"]


def test_two_processes_make_the_set_of_one(data, undisturbed, tmp_path):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    run = subprocess.run(
        [package_python(), *launch, "-m", "sona_pipeline", *command(data, tmp_path / "set")],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHON_EXEC": package_python()},
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count(f"Outliers of {COUNT} images") == 1
    made, expected = contents(tmp_path / "set"), undisturbed["folder"]
    assert made.keys() == expected.keys()
    rows = [[json.loads(line) for line in x["outliers/metadata.jsonl"].splitlines()] for x in (made, expected)]
    for one, other in zip(*rows):
        assert {k: one[k] for k in ("file_name", "source_key", "ood_label", "stop_step", "seed")} == {
            k: other[k] for k in ("file_name", "source_key", "ood_label", "stop_step", "seed")
        }
        pictures = [
            np.asarray(Image.open(io.BytesIO(x[f"outliers/{one['file_name']}"])), float) for x in (made, expected)
        ]
        assert np.abs(pictures[0] - pictures[1]).mean() < 1


@pytest.mark.skipif(sys.platform != "linux", reason="a small disk is made by Linux' user namespaces")
def test_full_disk_stops_a_run_and_leaves_what_is_done(data, undisturbed, tmp_path):
    disk, copy = tmp_path / "disk", tmp_path / "copy"
    disk.mkdir()
    generate = " ".join(f"'{part}'" for part in [sys.executable, "-m", "sona_pipeline", *command(data, disk / "set")])
    script = f"""
        mount -t tmpfs -o size=120k tmpfs '{disk}'
        {generate} >'{tmp_path}/out' 2>'{tmp_path}/errors'; echo $? >'{tmp_path}/code'
        find '{disk}/set' -name '*.partial' >'{tmp_path}/partial'
        cp -r '{disk}/set' '{tmp_path}/torn'
        mount -o remount,size=50m '{disk}'
        {generate} && cp -r '{disk}/set' '{copy}'
    """
    subprocess.run(["unshare", "-rm", "sh", "-c", script], check=True, stdout=subprocess.DEVNULL)
    errors = (tmp_path / "errors").read_text()
    assert (tmp_path / "code").read_text().strip() == "2"
    assert f"the disk of {disk / 'set'} is full; what is done is kept" in errors.replace("\n", " ")
    assert "Traceback" not in errors
    assert (tmp_path / "partial").read_text() == ""
    assert 0 < len(list(read_rows(tmp_path / "torn"))) < COUNT
    assert contents(copy) == undisturbed["folder"]
