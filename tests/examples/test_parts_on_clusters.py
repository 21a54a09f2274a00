"""The SLURM array and the Kubernetes job: read by what reads them, and their commands by the command line."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from warm_python import package_python

from sona_pipeline.cli.app import app
from sona_pipeline.common.configuration import Given
from sona_pipeline.data import sample
from sona_pipeline.data.outlier_set import read_rows
from sona_pipeline.generation.settings import OutputSettings

FOLDER = Path(__file__).parents[2] / "examples" / "full_size"
# https://slurm.schedmd.com/sbatch.html: options of `sbatch` with values of these forms.
SBATCH = {
    "job-name": r"[\w-]+",
    "array": r"1-(\d+)",
    "nodes": r"\d+",
    "ntasks": r"\d+",
    "gpus-per-node": r"\d+",
    "cpus-per-task": r"\d+",
    "time": r"\d+:\d\d:\d\d",
    "requeue": None,
    "output": r"[\w-]*%a[\w.-]*",
}


@pytest.fixture(scope="module")
def job() -> dict:
    return yaml.safe_load((FOLDER / "job.yaml").read_text())


def given_to(command: list[str], monkeypatch) -> Given:
    """What the command line takes from a command; nothing is run."""
    seen: list[Given] = []
    monkeypatch.setattr(Given, "of", lambda self, *_, **__: seen.append(self) or sys.exit())
    with pytest.raises(SystemExit):
        app(command)
    return seen[0]


def test_the_head_of_the_array_is_one_for_slurm():
    script = (FOLDER / "array.sbatch").read_text()
    subprocess.run(["bash", "-n", FOLDER / "array.sbatch"], check=True)
    lines = script.splitlines()
    head = lines[1 : next(k for k, line in enumerate(lines[1:], start=1) if not line.startswith("#SBATCH"))]
    assert len(head) == script.count("\n#SBATCH")
    for line in head:
        name, value = re.fullmatch(r"#SBATCH --([\w-]+)(?:=(.+))?", line).groups()
        assert value is None if SBATCH[name] is None else re.fullmatch(SBATCH[name], value), line
    assert re.search(r"--array=1-(\d+)", script)[1] == re.search(r"PARTS:-(\d+)", script)[1]


def test_the_array_starts_each_part_by_the_command_line(tmp_path, monkeypatch):
    (tmp_path / "python").write_text('#!/usr/bin/env bash\nprintf "%q " "$@"\n')
    (tmp_path / "python").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_ARRAY_TASK_ID": "5"}
    command = ["bash", FOLDER / "array.sbatch", "--data", "photos of/train"]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    module, name, *arguments = shlex.split(said)
    assert (module, name) == ("-m", "sona_pipeline")
    given = given_to(arguments, monkeypatch)
    assert (given["data"], given["part"], str(given["output"])) == ("photos of/train", "5/16", "runs/parts/5")


def test_the_job_is_one_for_kubernetes(job):
    kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)
    spec = job["spec"]
    assert spec["completionMode"] == "Indexed" and spec["completions"] == spec["parallelism"]
    broken = {**job, "spec": {**spec, "completionsMode": "Indexed"}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("index", [0, 7])
def test_the_job_starts_each_part_by_the_command_line(job, tmp_path, monkeypatch, index):
    (tmp_path / "sona").write_text('#!/usr/bin/env bash\nprintf "%q " "$@"\n')
    (tmp_path / "sona").chmod(0o755)
    container = job["spec"]["template"]["spec"]["containers"][0]
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "JOB_COMPLETION_INDEX": str(index)}
    command = [*container["command"], *container["args"]]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    given = given_to(shlex.split(said), monkeypatch)
    assert given["part"] == f"{index + 1}/{job['spec']['completions']}"
    assert given["format"] in ("parquet", "webdataset")
    assert OutputSettings(part=given["part"], format=given["format"])


def test_parts_of_the_array_make_a_set(tmp_path):
    """Two parts by the script itself, on the bundled images."""
    data = Path(sample.__file__).parents[1] / "assets" / "sample" / "train.parquet"
    options = ["--data", data, "--model", "tiny", "--limit", "6", "--steps", "2", "--batch-size", "2"]
    command = ["bash", FOLDER / "array.sbatch", *map(str, options)]
    environment = os.environ | {"PATH": f"{Path(package_python()).parent}:{os.environ['PATH']}", "PARTS": "2"}
    for part in ("1", "2"):
        subprocess.run(command, env=environment | {"SLURM_ARRAY_TASK_ID": part}, check=True, cwd=tmp_path)
    parts = sorted((tmp_path / "runs" / "parts").iterdir())
    app(["merge", *map(str, parts), "--output", str(tmp_path / "set")])
    assert len(list(read_rows(tmp_path / "set"))) == 6
