"""SONAPipeline among diffusers' ways to load, save, convert, adapt and place a pipeline."""

import copy
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

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

from sona_pipeline import SONAPipeline

SOURCE = Path(inspect.getfile(SONAPipeline))
NO_CHECKER = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def outlier_latents(pipe, id_prompt="a barn", **kwargs):
    """Latents of two images with different stop steps, from generators of fixed seeds."""
    pipe.set_progress_bar_config(disable=True)
    side = 8 * pipe.vae_scale_factor
    images = torch.linspace(0, 1, 2 * pipe.vae.config.in_channels * side**2).view(2, -1, side, side)
    settings = {
        "stop_step": [2, 4],
        "num_inference_steps": 4,
        "generator": [torch.Generator().manual_seed(k) for k in range(2)],
        "output_type": "latent",
    }
    return pipe(images, id_prompt, "a plane", **settings | kwargs).images


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
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
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
    before = {path.relative_to(sona_folder): path.read_bytes() for path in sona_folder.rglob("*.*")}
    found = in_fresh_process(script, tmp_path, offline(tmp_path))
    for latents in found["latents"]:
        torch.testing.assert_close(latents, outlier_latents(tiny_pipe))
    assert "trust_remote_code=True" in found["refused"]
    assert not found["package"]
    for folder in (sona_folder, tmp_path / "copy"):
        assert {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")} == before


def test_saved_folder_loads_by_the_class_of_the_package(tiny_pipe, sona_folder, tmp_path):
    script = """
        from sona_pipeline import SONAPipeline
        pipe = SONAPipeline.from_pretrained("sona", trust_remote_code=True)
        report(latents=outlier_latents(pipe), name=type(pipe).__name__)
    """
    environment = offline(tmp_path) | {"PYTHONPATH": str(SOURCE.parents[1])}
    found = in_fresh_process(script, tmp_path, environment)
    torch.testing.assert_close(found["latents"], outlier_latents(tiny_pipe))
    assert found["name"] == "SONAPipeline"


@pytest.mark.parametrize("name", ["code/pipeline.py", "code"], ids=["file", "folder"])
def test_custom_pipeline_is_a_local(name, tiny_pipe, sd_folder, tmp_path):
    published(tmp_path / "code")
    script = f"""
        pipe = DiffusionPipeline.from_pretrained("sd", custom_pipeline="{name}", trust_remote_code=True)
        report(latents=outlier_latents(pipe), name=type(pipe).__name__)
    """
    found = in_fresh_process(script, tmp_path, offline(tmp_path))
    torch.testing.assert_close(found["latents"], outlier_latents(tiny_pipe))
    assert found["name"] == "SONAPipeline"


def test_custom_pipeline_is_a_hub_repository(tiny_pipe, sd_folder, tmp_path, hub):
    hub.add("user/sona", published(tmp_path / "code"))
    script = """
        pipe = DiffusionPipeline.from_pretrained("sd", custom_pipeline="user/sona", trust_remote_code=True)
        report(latents=outlier_latents(pipe))
    """
    found = in_fresh_process(script, tmp_path, hub.environment(tmp_path / "home"))
    torch.testing.assert_close(found["latents"], outlier_latents(tiny_pipe))
    assert "GET /user/sona/resolve/main/pipeline.py" in hub.requests


def test_hub_repository_of_a_saved_pipeline(tiny_pipe, sona_folder, tmp_path, hub):
    commit = hub.add("user/sona-model", sona_folder).commit()
    shutil.copytree(sona_folder, tmp_path / "served")
    hub.add("user/sona-model", tmp_path / "served")
    shutil.rmtree(sona_folder)
    script = """
        pipe = DiffusionPipeline.from_pretrained("user/sona-model", trust_remote_code=True)
        report(latents=outlier_latents(pipe))
    """
    found = in_fresh_process(script, tmp_path, hub.environment(tmp_path / "home"))
    torch.testing.assert_close(found["latents"], outlier_latents(tiny_pipe))
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
        pipe = DiffusionPipeline.from_pretrained("user/sd", custom_pipeline="sona")
        pipe.save_pretrained("saved")
        report(latents=latents)
    """
    found = in_fresh_process(script, tmp_path, hub.environment(tmp_path / "home"))
    for latents in found["latents"]:
        torch.testing.assert_close(latents, outlier_latents(tiny_pipe))
    mirror = "GET /datasets/diffusers/community-pipelines-mirror/resolve/main"
    assert [path for path in hub.requests if path.startswith(mirror)] == [
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
    torch.testing.assert_close(outlier_latents(sona), outlier_latents(tiny_pipe))

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
    pipe = SONAPipeline.from_pretrained(sd_folder, **({"dtype": dtype} if way == "from_pretrained" else {}))
    pipe.to(dtype)
    assert {pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {dtype}
    latents = outlier_latents(pipe)
    assert latents.dtype == dtype
    assert latents.isfinite().all()
    images = outlier_latents(pipe, output_type="pt")
    assert images.isfinite().all()
    assert 0 <= images.min() < images.max() <= 1


def test_checkpoint_stored_in_half_precision_loads_without_a_dtype(tiny_pipe, tmp_path):
    """diffusers then loads float32, while transformers 5 keeps the dtype of the file: one call has to take both."""
    StableDiffusionPipeline(**tiny_pipe.to(torch.float16).components).save_pretrained(tmp_path)
    pipe = SONAPipeline.from_pretrained(tmp_path)
    assert pipe.unet.dtype == pipe.vae.dtype == torch.float32
    latents = outlier_latents(pipe, guidance_scale=0.0)
    torch.testing.assert_close(latents, outlier_latents(pipe.to(torch.float32), guidance_scale=0.0), atol=0.02, rtol=0)


def ldm_unet_key(key, unet):
    """The name of a UNet parameter in the original files of Stable Diffusion 1."""
    blocks = unet.config.layers_per_block + 1

    def numbered(match):
        side, i, kind, j = match[1], int(match[2]), match[3], int(match[4])
        if side == "down":
            index = 1 + i * blocks + (blocks - 1 if kind == "downsamplers" else j)
            return f"input_blocks.{index}.{int(kind == 'attentions')}"
        index = i * blocks + (blocks - 1 if kind == "upsamplers" else j)
        slot = {"resnets": 0, "attentions": 1}.get(kind, 1 + hasattr(unet.up_blocks[i], "attentions"))
        return f"output_blocks.{index}.{slot}"

    resnet = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    }
    if "resnets" in key:
        key = re.sub("|".join(resnet), lambda match: resnet[match[0]], key)
    key = key.replace("downsamplers.0.conv", "downsamplers.0.op")
    key = re.sub(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)", numbered, key)
    key = re.sub(r"mid_block\.(resnets|attentions)\.(\d)", lambda m: f"middle_block.{2 * int(m[2]) + (m[1] < 'b')}", key)
    ends = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
    key = re.sub(r"^(conv_in|conv_norm_out|conv_out)", lambda match: ends[match[0]], key)
    return "model.diffusion_model." + re.sub(r"time_embedding\.linear_([12])", r"time_embed.\1", key).replace(
        "time_embed.1", "time_embed.0"
    )


def ldm_vae_key(key, vae):
    """The name of a VAE parameter in the original files of Stable Diffusion 1."""
    last = len(vae.config.block_out_channels) - 1
    key = re.sub(r"up_blocks\.(\d+)", lambda match: f"up.{last - int(match[1])}", key)
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", key)
    names = {
        "down_blocks": "down",
        "resnets": "block",
        "downsamplers.0": "downsample",
        "upsamplers.0": "upsample",
        "mid_block.attentions.0": "mid.attn_1",
        "group_norm": "norm",
        "to_q": "q",
        "to_k": "k",
        "to_v": "v",
        "to_out.0": "proj_out",
        "conv_norm_out": "norm_out",
        "conv_shortcut": "nin_shortcut",
    }
    return "first_stage_model." + re.sub("|".join(map(re.escape, names)), lambda match: names[match[0]], key)


def test_from_single_file(tiny_pipe, sd_folder, tmp_path):
    state = {ldm_unet_key(key, tiny_pipe.unet): value for key, value in tiny_pipe.unet.state_dict().items()}
    for key, value in tiny_pipe.vae.state_dict().items():
        convolution = re.search(r"\.to_\w+.*weight", key)  # attention was made of 1 x 1 convolutions
        state[ldm_vae_key(key, tiny_pipe.vae)] = value[:, :, None, None] if convolution else value
    for key, value in tiny_pipe.text_encoder.state_dict().items():
        state["cond_stage_model.transformer.text_model." + key.removeprefix("text_model.")] = value
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "sd.safetensors")
    for weights in sd_folder.rglob("*.safetensors"):
        weights.unlink()
    pipe = SONAPipeline.from_single_file(tmp_path / "sd.safetensors", config=str(sd_folder))
    torch.testing.assert_close(outlier_latents(pipe), outlier_latents(tiny_pipe))


# Adapters, compilation and offloading


@pytest.mark.parametrize("part", ["unet", "text_encoder"])
def test_lora(part, tiny_pipe, tmp_path):
    targets = {"unet": ["to_q", "to_v"], "text_encoder": ["q_proj", "v_proj"]}[part]
    adapted = copy.deepcopy(getattr(tiny_pipe, part))
    torch.manual_seed(0)
    adapted.add_adapter(LoraConfig(r=2, lora_alpha=8, target_modules=targets, init_lora_weights=False))
    layers = convert_state_dict_to_diffusers(get_peft_model_state_dict(adapted))
    SONAPipeline.save_lora_weights(tmp_path, **{f"{part}_lora_layers": layers})

    without = outlier_latents(tiny_pipe)
    tiny_pipe.load_lora_weights(tmp_path)
    adapted = outlier_latents(tiny_pipe)
    assert (adapted - without).abs().max() > 1e-3
    torch.testing.assert_close(outlier_latents(tiny_pipe, cross_attention_kwargs={"scale": 0.0}), without)
    half = outlier_latents(tiny_pipe, cross_attention_kwargs={"scale": 0.5})
    assert min((half - adapted).abs().max(), (half - without).abs().max()) > 1e-3
    torch.testing.assert_close(outlier_latents(tiny_pipe), adapted)
    tiny_pipe.unload_lora_weights()
    torch.testing.assert_close(outlier_latents(tiny_pipe), without)


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
    assert (after - before).abs().max() > 1e-3


def test_compiled_unet_gives_the_same(tiny_pipe):
    expected = outlier_latents(tiny_pipe)
    tiny_pipe.unet = torch.compile(tiny_pipe.unet, backend="eager")
    torch.testing.assert_close(outlier_latents(tiny_pipe), expected)


def test_offload_sequence_is_the_order_of_last_use(tiny_pipe):
    used = []
    for name in ("text_encoder", "unet", "vae"):
        part = tiny_pipe.vae.decoder if name == "vae" else getattr(tiny_pipe, name)
        part.register_forward_hook(lambda *args, name=name: used.append(name))
    outlier_latents(tiny_pipe, output_type="pt")
    assert tiny_pipe.model_cpu_offload_seq.split("->") == list(dict.fromkeys(used))


@pytest.mark.parametrize("way", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offloading_hooks_leave_the_result_alone(way, tiny_pipe):
    expected = outlier_latents(tiny_pipe, output_type="pt")
    getattr(tiny_pipe, way)(device="cpu")
    for _ in range(2):
        torch.testing.assert_close(outlier_latents(tiny_pipe, output_type="pt"), expected)
