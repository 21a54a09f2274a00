"""SONAPipeline among diffusers' ways to load, save, convert, adapt and place a pipeline."""

import copy
import inspect
import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    __version__,
)
from diffusers.utils import convert_state_dict_to_diffusers
from loopback_hub import LoopbackHub
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from single_files import write_single_file
from warm_python import fresh_python

from sona_pipeline import SONAPipeline, load_pipeline
from sona_pipeline.generation.checkpoint import identity

SOURCE = SONAPipeline.standalone_file()
NO_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def outlier_latents(pipe, id_prompt="a barn", **kwargs):
    """Latents of two images with different stop steps, from generators of fixed seeds."""
    pipe.set_progress_bar_config(disable=True)
    side = 8 * pipe.vae_scale_factor
    images = torch.linspace(0, 1, 2 * pipe.vae.config.in_channels * side**2).view(2, -1, side, side)
    settings = {
        "stop_step": [2, 4],
        "num_inference_steps": 4,
        "guidance_scale": 2.0,
        "generator": [torch.Generator().manual_seed(k) for k in range(2)],
        "output_type": "latent",
    }
    return pipe(images, id_prompt, "a plane", **settings | kwargs).images


def assert_same(found, expected, tolerance=1e-3):
    """Equal but for rounding, which the place of weights in memory changes."""
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


def assert_different(found, *others):
    for other in others:
        assert (found - other).abs().max() > 0.02


@pytest.fixture
def sd_folder(tiny_components, tmp_path):
    """A checkpoint of StableDiffusionPipeline."""
    folder = tmp_path / "sd"
    StableDiffusionPipeline(**tiny_components, **NO_CHECKER).save_pretrained(folder)
    return folder


@pytest.fixture
def sona_folder(tiny_pipe, tmp_path):
    """A checkpoint of SONAPipeline."""
    folder = tmp_path / "sona"
    tiny_pipe.save_pretrained(folder)
    return folder


@pytest.fixture
def hub():
    with LoopbackHub() as server:
        yield server


def in_fresh_process(script, folder, environment):
    """Run a script in `folder`; what it passes to `report` comes back as a dictionary."""
    prelude = "import sys, torch\nfrom diffusers import DiffusionPipeline\n"
    report = "def report(**values):\n    torch.save(values, 'report.pt')\n"
    code = "\n".join([prelude, inspect.getsource(outlier_latents), report, inspect.cleandoc(script)])
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | environment
    done = subprocess.run([fresh_python(), "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return torch.load(folder / "report.pt")


def offline(folder):
    """Environment without a Hub, and with caches of its own."""
    return {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home")}


def published(folder):
    """A new repository folder with the pipeline's code alone."""
    folder.mkdir(parents=True)
    shutil.copyfile(SOURCE, folder / "pipeline.py")
    return folder


# Loading in a process of its own, as two local files of the name pipeline.py cannot be loaded in one


def test_saved_folder_names_its_code_and_holds_it(sona_folder):
    index = json.loads((sona_folder / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline", "SONAPipeline"]
    assert (sona_folder / "pipeline.py").read_bytes() == SOURCE.read_bytes()


def test_saved_folder_loads_and_saves_again_without_the_package(tiny_pipe, sona_folder, tmp_path):
    script = """
        try:
            DiffusionPipeline.from_pretrained("sona")
            refused = ""
        except ValueError as error:
            refused = str(error)
        pipe = DiffusionPipeline.from_pretrained("sona", trust_remote_code=True)
        latents = [outlier_latents(pipe)]
        for target in ("copy", "sona"):
            pipe.save_pretrained(target)
            latents.append(outlier_latents(DiffusionPipeline.from_pretrained(target, trust_remote_code=True)))
        report(latents=latents, refused=refused, package="sona_pipeline" in sys.modules)
    """
    names = ("pipeline.py", "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors")
    before = [(sona_folder / name).read_bytes() for name in names]
    found = in_fresh_process(script, tmp_path, offline(tmp_path))
    for latents in found["latents"]:
        assert_same(latents, outlier_latents(tiny_pipe))
    assert "trust_remote_code=True" in found["refused"]
    assert not found["package"]
    for folder in (sona_folder, tmp_path / "copy"):
        assert [(folder / name).read_bytes() for name in names] == before


def test_saved_folder_needs_no_remote_code_for_the_class_of_the_package(tiny_pipe, sona_folder, tmp_path):
    script = """
        from sona_pipeline import SONAPipeline
        pipe = SONAPipeline.from_pretrained("sona")
        report(latents=outlier_latents(pipe), own=type(pipe) is SONAPipeline)
    """
    environment = offline(tmp_path) | {"PYTHONPATH": str(SOURCE.parents[1])}
    found = in_fresh_process(script, tmp_path, environment)
    assert_same(found["latents"], outlier_latents(tiny_pipe))
    assert found["own"]


@pytest.mark.parametrize("name", ["code/pipeline.py", "code"], ids=["file", "folder"])
def test_custom_pipeline_is_a_local(name, tiny_pipe, sd_folder, tmp_path):
    published(tmp_path / "code")
    script = f"""
        pipe = DiffusionPipeline.from_pretrained("sd", custom_pipeline="{name}", trust_remote_code=True)
        report(latents=outlier_latents(pipe), name=type(pipe).__name__)
    """
    found = in_fresh_process(script, tmp_path, offline(tmp_path))
    assert_same(found["latents"], outlier_latents(tiny_pipe))
    assert found["name"] == "SONAPipeline"


def test_custom_pipeline_is_a_hub_repository(tiny_pipe, sd_folder, tmp_path, hub):
    hub.add("user/sona", published(tmp_path / "code"))
    script = """
        pipe = DiffusionPipeline.from_pretrained("sd", custom_pipeline="user/sona", trust_remote_code=True)
        report(latents=outlier_latents(pipe))
    """
    found = in_fresh_process(script, tmp_path, hub.environment(tmp_path / "home"))
    assert_same(found["latents"], outlier_latents(tiny_pipe))
    assert "GET /user/sona/resolve/main/pipeline.py" in hub.requests


def test_hub_repository_of_a_saved_pipeline(tiny_pipe, sona_folder, tmp_path, hub):
    commit = hub.add("user/sona-model", sona_folder).commit()
    script = """
        pipe = DiffusionPipeline.from_pretrained("user/sona-model", trust_remote_code=True)
        report(latents=outlier_latents(pipe))
    """
    found = in_fresh_process(script, tmp_path, hub.environment(tmp_path / "home"))
    assert_same(found["latents"], outlier_latents(tiny_pipe))
    for name in ("pipeline.py", "unet/diffusion_pytorch_model.safetensors"):
        assert f"GET /user/sona-model/resolve/{commit}/{name}" in hub.requests


def test_bare_community_name(tiny_pipe, sd_folder, tmp_path, hub):
    """Versions that PyPI knows have a folder of their own in the mirror, others take `main`; no trust is needed."""
    for version in (f"v{__version__}", "main"):
        (tmp_path / "mirror" / version).mkdir(parents=True)
        shutil.copyfile(SOURCE, tmp_path / "mirror" / version / "sona.py")
    hub.add("diffusers/community-pipelines-mirror", tmp_path / "mirror", repo_type="dataset")
    hub.add("user/sd", sd_folder)
    script = f"""
        from diffusers.utils import dynamic_modules_utils
        latents = []
        for versions in (["0.0.1", "{__version__}"], ["0.0.1"]):
            dynamic_modules_utils.get_diffusers_versions = lambda: versions
            latents.append(outlier_latents(DiffusionPipeline.from_pretrained("user/sd", custom_pipeline="sona")))
        DiffusionPipeline.from_pretrained("user/sd", custom_pipeline="sona").save_pretrained("saved")
        report(latents=latents)
    """
    found = in_fresh_process(script, tmp_path, hub.environment(tmp_path / "home"))
    for latents in found["latents"]:
        assert_same(latents, outlier_latents(tiny_pipe))
    mirror = "HEAD /datasets/diffusers/community-pipelines-mirror/resolve/main"
    assert list(dict.fromkeys(request for request in hub.requests if request.startswith(mirror))) == [
        f"{mirror}/v{__version__}/sona.py",
        f"{mirror}/main/sona.py",
    ]
    assert (tmp_path / "saved" / "pipeline.py").read_bytes() == SOURCE.read_bytes()


# Checkpoints of Stable Diffusion, in this process


@pytest.mark.parametrize("other", [StableDiffusionPipeline, StableDiffusionImg2ImgPipeline])
def test_from_pipe_shares_the_components(other, tiny_components, tiny_pipe):
    sona = SONAPipeline.from_pipe(other(**tiny_components, **NO_CHECKER))
    back = StableDiffusionImg2ImgPipeline.from_pipe(sona)
    for name, component in tiny_components.items():
        assert getattr(sona, name) is component
        assert getattr(back, name) is component
    assert_same(outlier_latents(sona), outlier_latents(tiny_pipe))

    side = 8 * back.vae_scale_factor
    back.set_progress_bar_config(disable=True)
    image = torch.zeros(1, back.vae.config.in_channels, side, side)
    latents = back("a barn", image, strength=0.5, num_inference_steps=4, output_type="latent").images
    assert latents.shape == (1, back.vae.config.latent_channels, 8, 8)
    assert latents.isfinite().all()


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_pndm_checkpoint_becomes_ddim_of_the_same_schedule(prediction_type, tiny_components, tmp_path):
    betas = {"beta_start": 0.001, "beta_end": 0.02, "beta_schedule": "scaled_linear", "num_train_timesteps": 500}
    pndm = PNDMScheduler(**betas, prediction_type=prediction_type, skip_prk_steps=True, steps_offset=1)
    StableDiffusionPipeline(**tiny_components | {"scheduler": pndm}, **NO_CHECKER).save_pretrained(tmp_path)
    pipe = SONAPipeline.from_pretrained(tmp_path)
    assert type(pipe.scheduler) is DDIMScheduler
    assert torch.equal(pipe.scheduler.betas, pndm.betas)
    assert pipe.scheduler.final_alpha_cumprod == pndm.final_alpha_cumprod
    assert pipe.scheduler.config.prediction_type == prediction_type
    assert (pipe.scheduler.config.steps_offset, pipe.scheduler.config.clip_sample) == (1, False)
    assert outlier_latents(pipe).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("way", ["from_pretrained", "to"])
def test_half_precision_call(dtype, way, sd_folder):
    if way == "from_pretrained":
        pipe = SONAPipeline.from_pretrained(sd_folder, dtype=dtype)
    else:
        pipe = SONAPipeline.from_pretrained(sd_folder).to(dtype)
    assert {pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {dtype}
    latents = outlier_latents(pipe)
    assert latents.dtype == torch.float32
    assert latents.isfinite().all()
    images = outlier_latents(pipe, output_type="pt")
    assert images.isfinite().all()
    assert 0 <= images.min() < images.max() <= 1


def test_checkpoint_stored_in_half_precision_loads_without_a_dtype(tiny_pipe, tmp_path):
    """diffusers then loads float32, while transformers 5 keeps the dtype of the file: one call has to take both."""
    half = tiny_pipe.to(torch.float16).components
    StableDiffusionPipeline(**half, requires_safety_checker=False).save_pretrained(tmp_path)
    pipe = SONAPipeline.from_pretrained(tmp_path)
    assert pipe.unet.dtype == pipe.vae.dtype == torch.float32
    latents = outlier_latents(pipe, guidance_scale=0.0)
    assert_same(latents, outlier_latents(pipe.to(torch.float32), guidance_scale=0.0), tolerance=0.02)


@pytest.mark.parametrize("way", ["from_single_file", "load_pipeline"])
def test_from_single_file(way, tiny_pipe, sd_folder, tmp_path):
    path = tmp_path / "sd.safetensors"
    write_single_file(tiny_pipe, path)
    for weights in sd_folder.rglob("*.safetensors"):
        weights.unlink()
    if way == "load_pipeline":
        pipe = load_pipeline(str(path), "cpu", model_config=str(sd_folder), dtype="float32")
        assert identity(pipe)["model"] == "sd.safetensors"
        assert re.fullmatch("[0-9a-f]{16}", identity(pipe)["model_revision"])
    else:
        pipe = SONAPipeline.from_single_file(path, config=str(sd_folder))
    assert_same(outlier_latents(pipe), outlier_latents(tiny_pipe))


def test_single_file_whose_configuration_cannot_be_had_says_so(tiny_pipe, tmp_path):
    path = tmp_path / "sd.safetensors"
    write_single_file(tiny_pipe, path)
    script = f"""
        from sona_pipeline import load_pipeline
        try:
            load_pipeline({str(path)!r}, "cpu")
        except FileNotFoundError as error:
            report(said=str(error))
    """
    found = in_fresh_process(script, tmp_path, offline(tmp_path) | {"PYTHONPATH": str(SOURCE.parents[1])})
    assert "sd.safetensors cannot be loaded without its configuration, which comes from the Hub" in found["said"]
    assert "--model-config" in found["said"] and "\n" not in found["said"]


# Adapters, compilation and offloading


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_lora(part, tiny_pipe, tmp_path, monkeypatch):
    # transformers 5.24 asks for a peft that is not released, and works with the one that is
    monkeypatch.setattr("transformers.integrations.peft.check_peft_version", lambda min_version: None)
    targets = {"unet": ["to_q", "to_v"], "text_encoder": ["q_proj", "v_proj"]}[part]
    adapted = copy.deepcopy(getattr(tiny_pipe, part))
    torch.manual_seed(0)
    adapted.add_adapter(LoraConfig(r=2, lora_alpha=8, target_modules=targets, init_lora_weights=False))
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(adapted))
    SONAPipeline.save_lora_weights(tmp_path, **{f"{part}_lora_layers": layers})

    without = outlier_latents(tiny_pipe)
    tiny_pipe.load_lora_weights(tmp_path)
    adapted = outlier_latents(tiny_pipe)
    assert_different(adapted, without)
    assert_same(outlier_latents(tiny_pipe, cross_attention_kwargs={"scale": 0.0}), without)
    half = outlier_latents(tiny_pipe, cross_attention_kwargs={"scale": 0.5})
    assert_different(half, adapted, without)
    assert_same(outlier_latents(tiny_pipe), adapted)
    tiny_pipe.unload_lora_weights()
    assert_same(outlier_latents(tiny_pipe), without)


@pytest.mark.parametrize("count", [1, 2])
def test_textual_inversion_puts_its_vectors_where_the_token_stands(count, tiny_pipe, tmp_path):
    width = tiny_pipe.text_encoder.config.hidden_size
    vectors = torch.randn(count, width, generator=torch.Generator().manual_seed(0))
    save_file({"<thing>": vectors if count > 1 else vectors[0]}, tmp_path / "learned.safetensors")
    before = outlier_latents(tiny_pipe, id_prompt="<thing>")
    tiny_pipe.load_textual_inversion(str(tmp_path), weight_name="learned.safetensors")

    seen = []
    tiny_pipe.text_encoder.get_input_embeddings().register_forward_hook(lambda module, ids, out: seen.append(out))
    after = outlier_latents(tiny_pipe, id_prompt="<thing>")
    assert torch.equal(seen[0][1, 1 : 1 + count], vectors)  # the second text, behind the token of its beginning
    assert_different(after, before)


def test_compiled_unet_gives_the_same(tiny_pipe):
    expected = outlier_latents(tiny_pipe)
    tiny_pipe.unet = torch.compile(tiny_pipe.unet, backend="eager")
    assert_same(outlier_latents(tiny_pipe), expected)


def test_offload_sequence_is_the_order_of_last_use(tiny_pipe):
    used = []
    for name in ("text_encoder", "unet", "vae"):
        part = tiny_pipe.vae.decoder if name == "vae" else getattr(tiny_pipe, name)
        part.register_forward_hook(lambda *args, name=name: used.append(name))
    outlier_latents(tiny_pipe, output_type="pt")
    assert tiny_pipe.model_cpu_offload_seq.split("->") == list(dict.fromkeys(used))


def test_model_offload_leaves_the_result_alone_and_renews_its_hooks(tiny_pipe):
    """On the CPU as the device to load to, as there may be no other; sequential offload cannot do that."""
    expected = outlier_latents(tiny_pipe, output_type="pt")
    tiny_pipe.enable_model_cpu_offload(device="cpu")
    first = tiny_pipe._all_hooks
    assert_same(outlier_latents(tiny_pipe, output_type="pt"), expected)
    assert [hook.model for hook in tiny_pipe._all_hooks] == [tiny_pipe.text_encoder, tiny_pipe.unet, tiny_pipe.vae]
    assert not set(map(id, first)) & set(map(id, tiny_pipe._all_hooks))
    assert_same(outlier_latents(tiny_pipe, output_type="pt"), expected)


@pytest.mark.filterwarnings("error::FutureWarning")
@pytest.mark.parametrize("form", [torch.Tensor, np.ndarray])
def test_batch_is_taken_without_a_deprecation_warning(form, tiny_pipe):
    side = 8 * tiny_pipe.vae_scale_factor
    images = torch.zeros(2, tiny_pipe.vae.config.in_channels, side, side)
    images = images if form is torch.Tensor else images.permute(0, 2, 3, 1).numpy()
    assert tiny_pipe(images, "a barn", "a plane", stop_step=1, num_inference_steps=4).stop_steps == [1, 1]
