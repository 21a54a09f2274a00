import re
import subprocess
from pathlib import Path

import pytest
import torch
from pictures import write_sample
from warm_python import package_python

from sona_pipeline import TINY_DETECTOR, load_detector, load_pipeline
from sona_pipeline.cli.app import main
from sona_pipeline.common.devices import (
    check_compiler,
    check_dtype,
    default_dtype,
    devices_there,
    multiplies_bfloat16,
    usable_device,
)

NOT_THERE = ["gpu", "cuda:99", "mps", "meta", "toaster", "cpu:x", ""]
LOADERS = {
    "pipeline": lambda device: load_pipeline("tiny", device),
    "detector": lambda device: load_detector(TINY_DETECTOR, device),
}


@pytest.mark.parametrize("device", [one for one in NOT_THERE if one not in devices_there()])
@pytest.mark.parametrize("load", LOADERS)
def test_device_that_is_not_there_is_the_same_sentence_everywhere(load, device):
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("it is there")
    with pytest.raises(
        ValueError, match=rf"the device {re.escape(device)} cannot be used: this machine has cpu"
    ) as caught:
        LOADERS[load](device)
    assert "\n" not in str(caught.value)


COMMANDS = {
    "generate": "generate --data images --model tiny --ood-labels labels.txt --output out --device toaster",
    "demo": "demo --device toaster",
    "score": f"score images --detector {TINY_DETECTOR} --device toaster",
}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_say_it_and_write_nothing(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_sample(tmp_path / "images", 8)
    (tmp_path / "labels.txt").write_text("bag\n")
    with pytest.raises(SystemExit) as end:
        main(COMMANDS[command].split())
    assert end.value.code == 2
    said = "".join(capsys.readouterr())
    assert "the device toaster cannot be used: this machine has cpu" in " ".join(said.split())
    assert not (tmp_path / "out").exists()


def test_devices_that_are_there():
    assert usable_device("cpu") == usable_device(torch.device("cpu")) == torch.device("cpu")
    assert str(usable_device()).split(":")[0] in {one.split(":")[0] for one in devices_there()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_that_this_processor_computes_in(dtype):
    check_dtype(torch.device("cpu"), dtype)


@pytest.mark.parametrize(
    ("said", "has_library", "expected"),
    [
        ({"architecture": "x86_64", "avx512_bf16": True}, True, "bfloat16"),
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": True}, True, "bfloat16"),
        ({"architecture": "arm64", "bf16": True}, True, "bfloat16"),
        ({"architecture": "x86_64", "avx512_f": True, "avx512_bf16": False}, True, "float32"),
        ({"architecture": "arm64", "bf16": True}, False, "float32"),
        ({}, True, "float32"),
    ],
)
def test_default_dtype_follows_what_torch_says_of_the_processor(said, has_library, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: said, raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: has_library)
    assert default_dtype(torch.device("cpu")) == expected
    assert default_dtype(torch.device("cuda")) == default_dtype(torch.device("mps")) == "float16"


def test_torch_that_says_nothing_of_the_processor_counts_as_no(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert default_dtype(torch.device("cpu")) == "float32"


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="Linux says what the processor has")
def test_this_processor_has_what_linux_says_of_it():
    if not hasattr(torch.cpu, "get_capabilities"):
        pytest.skip("this torch does not say")
    flags = set(re.findall(r"\w+", Path("/proc/cpuinfo").read_text()))
    assert multiplies_bfloat16() == bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def test_dtype_that_the_device_cannot_compute_in():
    with pytest.raises(ValueError, match=r"the device cpu cannot compute in int64 \(.+\): use float32"):
        check_dtype(torch.device("cpu"), torch.int64)


def test_compiler_that_is_missing_is_one_sentence_before_anything_is_loaded(tmp_path):
    script = (
        "from sona_pipeline import load_pipeline\n"
        "try:\n    load_pipeline('tiny', 'cpu', compile=True)\n"
        "except ValueError as error:\n    print(error)"
    )
    environment = {"PATH": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run([package_python(), "-c", script], env=environment, capture_output=True, text=True, check=True)
    (said,) = done.stdout.splitlines()
    assert said.startswith("the denoiser cannot be compiled here (") and "install a C++ compiler, such as g++" in said


def test_compiler_that_works_is_no_error(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: function)
    check_compiler(torch.device("cpu"))
