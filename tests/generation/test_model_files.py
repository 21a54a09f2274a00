"""What may stand at `--model`, and what is said of everything else."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from loopback_hub import LoopbackHub
from safetensors.torch import load_file, save_file
from warm_python import fresh_python

from sona_pipeline import TINY_MODEL
from sona_pipeline.generation.checkpoint import identity, load_pipeline
from sona_pipeline.generation.model_files import find_model

UNET = "unet/diffusion_pytorch_model.safetensors"
WITH_CONTROL = {"_class_name": "StableDiffusionControlNetPipeline"} | {
    name: ["diffusers", "X"] for name in ("unet", "vae", "text_encoder", "controlnet", "tokenizer", "scheduler")
}


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """A copy of the embedded model."""
    return Path(shutil.copytree(TINY_MODEL, tmp_path / "model"))


def as_variant(folder: Path, variant: str) -> None:
    for path in folder.rglob("*.safetensors"):
        path.rename(path.with_name(f"{path.stem}.{variant}.safetensors"))


def settings_of(folder: Path, component: str, **changes) -> None:
    """Change a component's configuration; None takes a value out."""
    path = folder / component / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in config.items() if name not in changes or value != "-"}))


def test_weights_that_are_there_as_a_variant_only_are_taken(checkpoint, caplog):
    as_variant(checkpoint, "fp16")
    with caplog.at_level("INFO"):
        pipe = load_pipeline(str(checkpoint), "cpu", dtype="float32")
    assert "variant fp16 only" in caplog.text
    stored = load_file(checkpoint / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    assert torch.equal(pipe.unet.state_dict()["conv_in.bias"], stored["conv_in.bias"].float())


def test_the_variant_that_is_named_is_taken_and_by_default_the_weights_without_one(checkpoint):
    other = shutil.copytree(checkpoint, checkpoint.parent / "other")
    as_variant(other, "fp16")
    for path in other.rglob("*.fp16.safetensors"):
        weights = {name: value + 1 if value.is_floating_point() else value for name, value in load_file(path).items()}
        save_file(weights, checkpoint / path.relative_to(other), metadata={"format": "pt"})
    plain, named = (
        load_pipeline(str(checkpoint), "cpu", variant=variant, dtype="float32") for variant in (None, "fp16")
    )
    bias = [pipe.unet.state_dict()["conv_in.bias"] for pipe in (plain, named)]
    torch.testing.assert_close(bias[0] + 1, bias[1], rtol=0, atol=2e-3)
    with pytest.raises(ValueError, match=r"has no weights of the variant 'bf16', but: fp16, none"):
        load_pipeline(str(checkpoint), "cpu", variant="bf16")


def test_sharded_weights_have_no_variant(checkpoint):
    (checkpoint / UNET).rename(checkpoint / "unet" / "diffusion_pytorch_model-00001-of-00001.safetensors")
    assert find_model(str(checkpoint)).variant is None
    shard = checkpoint / "unet" / "diffusion_pytorch_model-00001-of-00001.safetensors"
    shard.rename(shard.with_name("diffusion_pytorch_model.fp16-00001-of-00001.safetensors"))
    assert find_model(str(checkpoint)).variant == "fp16"


def made(folder: Path, **contents) -> Path:
    """A folder with files of these contents."""
    for name, content in contents.items():
        path = folder / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, dict) and any(isinstance(value, torch.Tensor) for value in content.values()):
            save_file(content, path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return folder


TENSOR = torch.zeros(2)
FOLDERS = {
    "nothing": ({"notes_dot_txt": b"-"}, r"has no model_index.json: name a folder or Hub id"),
    "one file": ({"sd_dot_safetensors": {"a": TENSOR}}, "has no model_index.json, but the file sd.safetensors"),
    "a LoRA": ({"pytorch_lora_weights_dot_safetensors": {"a": TENSOR}}, "holds a LoRA, which changes a checkpoint"),
    "pickles": ({"sd_dot_ckpt": b"-"}, "and pickles, which are never loaded"),
    "one above": ({"sd__model_index_dot_json": {}}, r"but sd/model_index.json lies in it"),
    "control": (
        {"model_index_dot_json": WITH_CONTROL},
        "is a StableDiffusionControlNetPipeline, which takes other images",
    ),
    "no text": (
        {"model_index_dot_json": {"_class_name": "DDPMPipeline", "unet": ["a", "b"], "scheduler": ["a", "b"]}},
        "is a DDPMPipeline, and of no family that is known",
    ),
    "broken index": ({"model_index_dot_json": b"{"}, r"model_index.json is no JSON: .*; copy or download it again"),
}


@pytest.mark.parametrize(("contents", "message"), FOLDERS.values(), ids=FOLDERS)
def test_folder_that_is_no_checkpoint(contents, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_pipeline(str(made(tmp_path / "folder", **contents)), "cpu")


def test_pickled_weights_are_refused_by_name(checkpoint):
    (checkpoint / UNET).rename(checkpoint / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match=r"the weights of the UNet of .* are pickles, which are never loaded"):
        load_pipeline(str(checkpoint), "cpu")


FILES = {
    "sd.ckpt": (b"-", "is a pickle, which is never loaded"),
    "sd.bin": (b"-", "is a pickle, which is never loaded"),
    "sd.gguf": (b"-", "is no checkpoint: name a folder or Hub id"),
    "torn.safetensors": (b"\x20\0\0\0\0\0\0\0{", "is damaged: copy or download it again"),
    "kohya.safetensors": ({"lora_unet_down_blocks_0.lora_down.weight": TENSOR}, "is a LoRA"),
    "peft.safetensors": ({"unet.down_blocks.0.to_q.lora_A.weight": TENSOR}, "is a LoRA"),
    "other.safetensors": ({"model.diffusion_model.joint_blocks.0.a": TENSOR}, "is of another family than Stable"),
    "vae.safetensors": ({"first_stage_model.a": TENSOR}, "is no whole checkpoint, but has no UNet, no text encoder"),
}


@pytest.mark.parametrize("name", FILES)
def test_file_that_is_no_checkpoint(name, tmp_path):
    content, message = FILES[name]
    path = tmp_path / name
    if isinstance(content, dict):
        save_file({key: value.clone() for key, value in content.items()}, path)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))} {message}"):
        load_pipeline(str(path), "cpu")


@pytest.mark.parametrize("model", ["not/here/model", "./model", "/no/folder", "nowhere", "models/sd.safetensors/x"])
def test_place_that_is_not_there(model, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"{re.escape(model)} does not exist: name a folder or Hub id"):
        load_pipeline(model, "cpu")


def test_home_folder_is_found(checkpoint, monkeypatch):
    monkeypatch.setenv("HOME", str(checkpoint.parent))
    assert find_model("~/model").place == str(checkpoint)


CONFIGURATIONS = {
    "inpainting": ("unet", {"in_channels": 9}, "9 channels and gives 4: it is made for masks, too"),
    "no heads": ("unet", {"attention_head_dim": None}, "configuration of a component is not complete"),
    "other weights": ("unet", {"block_out_channels": [32, 32]}, "cannot be loaded"),
}


@pytest.mark.parametrize(("component", "changes", "message"), CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_configuration_that_does_not_fit_is_one_sentence(component, changes, message, checkpoint):
    settings_of(checkpoint, component, **changes)
    if "in_channels" in changes:
        weights = load_file(checkpoint / UNET)
        weights["conv_in.weight"] = weights["conv_in.weight"].repeat(1, 3, 1, 1)[:, :9].contiguous()
        save_file(weights, checkpoint / UNET, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=message) as caught:
        load_pipeline(str(checkpoint), "cpu")
    assert "\n" not in str(caught.value)


def test_missing_or_torn_weights(checkpoint):
    path = checkpoint / "vae" / "diffusion_pytorch_model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(ValueError, match="are damaged: copy or download it again") as caught:
        load_pipeline(str(checkpoint), "cpu")
    assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="cannot be loaded without all files of it") as caught:
        load_pipeline(str(checkpoint), "cpu")
    assert "\n" not in str(caught.value)


SCRIPT = """
import sys
from sona_pipeline.generation.checkpoint import load_pipeline
for model in sys.argv[1:]:
    try:
        pipe = load_pipeline(model, "cpu", dtype="float32")
        print("loaded", model, pipe.unet.dtype)
    except (FileNotFoundError, ValueError) as error:
        print(type(error).__name__, error)
"""


def said(environment: dict[str, str], *models: str) -> list[str]:
    done = subprocess.run(
        [fresh_python(), "-c", SCRIPT, *models],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_models_of_the_hub(checkpoint, tmp_path):
    variant = shutil.copytree(checkpoint, tmp_path / "variant")
    as_variant(variant, "fp16")
    with LoopbackHub() as hub:
        hub.add("user/model", checkpoint)
        hub.add("user/half", variant)
        hub.add("user/lora", made(tmp_path / "lora", pytorch_lora_weights_dot_safetensors={"a": TENSOR}))
        online = said(hub.environment(tmp_path / "home"), "user/model", "user/half", "user/lora", "user/none")
        environment = hub.environment(tmp_path / "home") | {"HF_HUB_OFFLINE": "1"}
        offline = said(environment, "user/model", "user/half", "user/new")
    assert online[:2] == ["loaded user/model torch.float32", "loaded user/half torch.float32"]
    assert online[2].startswith("ValueError user/lora holds a LoRA")
    assert online[3].startswith("FileNotFoundError user/none is no folder here and no model on the Hub")
    assert offline[:2] == online[:2]
    assert "user/new is no folder here, is not in the cache, and HF_HUB_OFFLINE is set: connect once" in offline[2]
    away = said(hub.environment(tmp_path / "home"), "user/model", "user/new")
    assert away[0] == online[0]
    assert "and the Hub cannot be reached: connect once to download it" in away[1]


def test_a_single_file_is_told_apart_by_its_content(tmp_path):
    from types import SimpleNamespace

    def told(content: bytes) -> dict:
        (tmp_path / "sd.safetensors").write_bytes(content)
        unet = SimpleNamespace(config={})
        return identity(SimpleNamespace(name_or_path=str(tmp_path / "sd.safetensors"), denoiser=unet, scheduler=None))

    one, other = told(b"one"), told(b"two")
    assert one["model"] == other["model"] == "sd.safetensors"
    assert one["model_revision"] != other["model_revision"]
