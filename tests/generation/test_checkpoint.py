import json
import math
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import diffusers
import pytest
import torch
from loopback_hub import LoopbackHub
from safetensors.torch import load_file
from warm_python import fresh_python

from sona_pipeline import TINY_MODEL
from sona_pipeline.generation.checkpoint import find_batch_size, identity, load_pipeline
from sona_pipeline.generation.settings import SCHEDULERS

NAMES = {
    "ddim": "DDIMScheduler",
    "dpmsolver++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
}


@pytest.mark.parametrize("scheduler", NAMES)
def test_the_embedded_model_loads_with_each_scheduler(scheduler):
    pipe = load_pipeline("tiny", "cpu", scheduler=scheduler, dtype="float32")
    assert type(pipe.scheduler) is getattr(diffusers, NAMES[scheduler])
    stored = json.loads((TINY_MODEL / "scheduler" / "scheduler_config.json").read_text())
    for name in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "prediction_type"):
        assert pipe.scheduler.config[name] == stored[name]
    assert (pipe.device.type, pipe.unet.dtype, pipe.vae.dtype) == ("cpu", torch.float32, torch.float32)
    assert identity(pipe)["scheduler"] == NAMES[scheduler]


def test_a_loaded_model_has_the_weights_of_its_files():
    pipe = load_pipeline("tiny", "cpu", dtype="float32")
    stored = load_file(TINY_MODEL / "unet" / "diffusion_pytorch_model.safetensors")
    loaded = pipe.unet.state_dict()
    assert loaded.keys() == stored.keys()
    assert all(torch.equal(loaded[name], stored[name].float()) for name in stored)
    assert pipe.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert not pipe.vae.use_slicing


def test_options_of_loading_reach_the_models():
    options = {"dtype": "bfloat16", "channels_last": False, "vae_slicing": True}
    pipe = load_pipeline(str(TINY_MODEL), torch.device("cpu"), **options)
    assert (pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    assert pipe.unet.conv_in.weight.is_contiguous()
    assert pipe.vae.use_slicing


@pytest.mark.parametrize("instructions", [{"avx512_bf16": True, "amx_bf16": False}, {"bf16": True}, {"bf16": False}])
def test_dtype_of_a_cpu_is_what_it_multiplies(instructions, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: instructions, raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    is_half, pipe = any(instructions.values()), load_pipeline("tiny", "cpu")
    assert pipe.unet.dtype == (torch.bfloat16 if is_half else torch.float32)
    assert pipe.vae.dtype == pipe.text_encoder.dtype == torch.float32
    assert pipe.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last) != is_half


def test_float16_is_that_of_all_models():
    pipe = load_pipeline("tiny", "cpu", dtype="float16")
    assert {pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {torch.float16}
    assert pipe.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


def test_bfloat16_rounds_the_weights_of_the_unet_once():
    pipe = load_pipeline("tiny", "cpu", dtype="bfloat16")
    for part, dtype in (("unet", torch.bfloat16), ("vae", torch.float32)):
        stored = load_file(TINY_MODEL / part / "diffusion_pytorch_model.safetensors")
        loaded = getattr(pipe, part).state_dict()
        assert all(torch.equal(loaded[name], stored[name].float().to(dtype)) for name in stored)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheduler": "pndm"}, r"`scheduler` is 'pndm', but has to be one of ddim, dpmsolver\+\+, unipc, euler"),
        ({"scheduler": "DDIM"}, "`scheduler` is 'DDIM'"),
        ({"dtype": "float64"}, "`dtype` is 'float64', but has to be one of float32, float16, bfloat16"),
        ({"dtype": "half"}, "`dtype` is 'half'"),
    ],
)
def test_names_that_are_not_known_are_refused_before_anything_is_loaded(options, message):
    with pytest.raises(ValueError, match=message):
        load_pipeline("no/such-model", "cpu", **options)


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """A folder with files like those of a checkpoint, one of them longer than what is read of each end."""
    folder = tmp_path / "here" / "model"
    contents = {
        "model_index.json": b'{"unet": 1}',
        "unet/config.json": b'{"layers": 2}',
        "unet/diffusion_pytorch_model.safetensors": bytes(range(256)) * 1000,
        "vae/diffusion_pytorch_model.safetensors": b"short",
        "README.md": b"a model",
    }
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def identity_of(name, place=None, scheduler="ddim") -> dict:
    unet = SimpleNamespace(config={"_name_or_path": place})
    return identity(SimpleNamespace(name_or_path=name and str(name), denoiser=unet, scheduler=SCHEDULERS[scheduler]()))


def test_a_copy_elsewhere_is_the_same_checkpoint(checkpoint, tmp_path):
    before = identity_of(checkpoint)
    shutil.copytree(checkpoint, tmp_path / "there" / "model")
    assert identity_of(tmp_path / "there" / "model") == before
    assert before["model"] == "model"
    (checkpoint / "README.md").write_text("a good model")
    assert identity_of(checkpoint) == before
    assert identity_of(f"{checkpoint}/../model/") == before


def replaced(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert content.count(old)
    path.write_bytes(new.join(content.rsplit(old, 1)))


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: replaced(folder / "unet/diffusion_pytorch_model.safetensors", b"\xff", b"\xfe"),
        lambda folder: replaced(folder / "vae/diffusion_pytorch_model.safetensors", b"t", b"T"),
        lambda folder: replaced(folder / "unet/config.json", b"2", b"3"),
        lambda folder: (folder / "vae/config.json").write_text("{}"),
        lambda folder: (folder / "unet/config.json").unlink(),
        lambda folder: (folder / "unet").rename(folder / "transformer"),
        lambda folder: (folder / "vae/diffusion_pytorch_model.safetensors").open("ab").write(b"\0"),
    ],
    ids=["last byte", "short file", "setting", "new file", "missing file", "renamed", "longer"],
)
def test_a_changed_file_is_another_revision_of_the_model(checkpoint, change):
    before = identity_of(checkpoint)
    change(checkpoint)
    after = identity_of(checkpoint)
    assert after["model_revision"] != before["model_revision"]
    assert after | {"model_revision": ""} == before | {"model_revision": ""}


def test_a_model_of_the_hub_is_told_by_its_commit(tmp_path):
    script = "import json; from sona_pipeline.generation.checkpoint import identity, load_pipeline\n"
    script += "print(json.dumps(identity(load_pipeline('user/model', 'cpu', scheduler='euler'))))"
    with LoopbackHub() as hub:
        commit = hub.add("user/model", TINY_MODEL).commit()
        run = subprocess.run(
            [fresh_python(), "-c", script],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | hub.environment(tmp_path),
        )
    expected = {"model": "user/model", "model_revision": commit, "scheduler": "EulerDiscreteScheduler"}
    assert json.loads(run.stdout.splitlines()[-1]) == expected


def test_a_model_without_files_has_no_revision():
    assert identity_of(None)["model"] == "in memory"
    assert identity_of(None)["model_revision"] == "unknown"


OUT_OF_MEMORY = math.inf


def found_batch_size(monkeypatch, seconds, **options) -> tuple[int, list[int]]:
    """The batch size that is found if a step takes `seconds(batch_size)`, and the sizes that were tried."""
    tried = []

    def measured(pipe, batch_size, size):
        assert (pipe, size) == ("pipe", 512)
        tried.append(batch_size)
        if seconds(batch_size) == OUT_OF_MEMORY:
            raise torch.OutOfMemoryError
        return seconds(batch_size)

    monkeypatch.setattr("sona_pipeline.generation.checkpoint._seconds_of_step", measured)
    return find_batch_size("pipe", 512, **options), tried


@pytest.mark.parametrize(
    ("seconds", "options", "best"),
    [
        # A step costs the same whatever the batch: always worth it, up to the limit.
        (lambda n: 1, {}, 256),
        (lambda n: 1, {"most": 100}, 64),
        (lambda n: 1, {"most": 1}, 1),
        # A step costs what its images cost: never worth it.
        (lambda n: n, {}, 1),
        # A fixed cost of 4 images: 1/5, 2/6, 4/8, 8/12, 16/20, 32/36, 64/68 images a second and so on; the gains are
        # 67 %, 50 %, 33 %, 20 %, 11 %, 5.9 %, 3.0303 % (64/68 to 128/132), 1.5 %.
        (lambda n: 4 + n, {}, 128),
        (lambda n: 4 + n, {"gain": 0.0304}, 64),
        (lambda n: 4 + n, {"gain": 0.15}, 16),
        (lambda n: 4 + n, {"gain": 0.6}, 2),
        # Memory for 16 images, for 1, and for none; the other stages of a run need some, too.
        (lambda n: 1 if n <= 16 else OUT_OF_MEMORY, {}, 8),
        (lambda n: 1 if n <= 1 else OUT_OF_MEMORY, {}, 1),
        (lambda n: OUT_OF_MEMORY, {}, 1),
        # Slower from 8 on.
        (lambda n: 1 if n <= 4 else 100, {}, 4),
    ],
)
def test_the_batch_size_is_the_smallest_at_nearly_full_speed(monkeypatch, seconds, options, best):
    found, tried = found_batch_size(monkeypatch, seconds, **options)
    assert found == best
    assert tried == [2**k for k in range(len(tried))]
    assert tried[-1] in (best, 2 * best, 4 * best)


def test_a_batch_size_is_found_for_a_real_pipeline(tiny_pipe):
    assert find_batch_size(tiny_pipe, 32, most=2) in (1, 2)
