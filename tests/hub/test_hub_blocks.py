"""Repositories of blocks: laid out, loaded by modular diffusers without this package, and run."""

import ast
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from loopback_hub import TOKEN, LoopbackHub
from warm_python import fresh_python

import sona_pipeline
from sona_pipeline import TINY_MODEL, load_pipeline, write_blocks_repository
from sona_pipeline.generation.families import all_families
from sona_pipeline.hub.blocks import blocks_file

ROOT = Path(sona_pipeline.__file__).parents[1]
PUSH = """
from sona_pipeline.cli.app import app
app(["push", "blocks", "user/blocks", "--model", "user/base"], result_action="return_value")
app(["push", "blocks", "user/code"], result_action="return_value")
"""
RUN = """
import sys
import torch
from diffusers import InputParam, ModularPipeline, ModularPipelineBlocks, OutputParam

class Watch(ModularPipelineBlocks):
    inputs = [InputParam("shares", list)]
    intermediate_outputs = [OutputParam("shares", list)]

    def __call__(self, components, state, i, t):
        masks = (state.id_semantic_mask, state.id_nuisance_mask, state.ood_unfiltered_mask)
        state.shares = [*(state.shares or []), [mask.float().mean().item() for mask in masks]]
        return components, state

def made(pipe):
    image = torch.linspace(0, 1, 32 * 32).view(1, 1, 32, 32)
    given = {"stop_step": 2, "num_inference_steps": 4, "output_type": "latent", "generator": torch.manual_seed(0)}
    return pipe(image=image, id_prompt="a photo of a shirt", ood_prompt="a photo of a bag", **given)

pipe = ModularPipeline.from_pretrained("user/blocks", trust_remote_code=True)
pipe.load_components(dtype=torch.float32)
plain = made(pipe)
blocks = pipe.blocks
blocks.sub_blocks["denoise"].sub_blocks.insert("watch", Watch(), 2)
watched = blocks.init_pipeline()
watched.update_components(**pipe.components)
seen = made(watched)
pipe.update_components(guider=pipe.guider.new(guidance_scale=0.0))
bare = ModularPipelineBlocks.from_pretrained("user/code", trust_remote_code=True).init_pipeline("user/base")
bare.load_components(dtype=torch.float32)
latents = [plain.images, seen.images, made(bare).images, made(pipe).images]
assert "sona_pipeline" not in sys.modules
torch.save({"latents": latents, "shares": seen.shares, "null": pipe.null_component_names}, "report.pt")
"""


def in_process(code, folder, environment):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    done = subprocess.run([fresh_python(), "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def expected(**options):
    pipe = load_pipeline("tiny", "cpu", dtype="float32")
    pipe.set_progress_bar_config(disable=True)
    image = torch.linspace(0, 1, 32 * 32).view(1, 1, 32, 32)
    given = {"stop_step": 2, "num_inference_steps": 4, "output_type": "latent", "generator": torch.manual_seed(0)}
    return pipe(image, "a photo of a shirt", "a photo of a bag", **given, **options).images


def test_what_was_pushed_runs_without_this_package_and_blocks_put_in_see_every_step(tmp_path):
    with LoopbackHub() as hub:
        hub.add("user/base", shutil.copytree(TINY_MODEL, tmp_path / "base"))
        in_process(PUSH, tmp_path, hub.environment(tmp_path / "home") | {"HF_TOKEN": TOKEN, "PYTHONPATH": str(ROOT)})
        done = in_process(RUN, tmp_path, hub.environment(tmp_path / "home"))
    assert "Failed" not in done.stderr
    report = torch.load(tmp_path / "report.pt")
    for latents in report["latents"][:3]:
        torch.testing.assert_close(latents, expected(), atol=1e-3, rtol=0)
    torch.testing.assert_close(report["latents"][3], expected(guidance_scale=0.0), atol=1e-3, rtol=0)
    assert report["shares"] == [pytest.approx([13 / 64] * 3)] * 2  # the nearest whole number to a fifth of 8 x 8
    assert report["null"] == ["safety_checker", "feature_extractor"]


def test_folder_names_the_class_the_weights_and_no_place_of_this_machine(tmp_path):
    write_blocks_repository(tmp_path / "code", "me/code", "stable_diffusion")
    assert sorted(path.name for path in (tmp_path / "code").iterdir()) == [
        "README.md",
        "block.py",
        "modular_config.json",
        "modular_model_index.json",
    ]
    config = json.loads((tmp_path / "code" / "modular_config.json").read_text())
    assert config["auto_map"] == {"ModularPipelineBlocks": "block.SONAPipelineBlocks"}
    index = json.loads((tmp_path / "code" / "modular_model_index.json").read_text())
    assert index["_blocks_class_name"] == "SONAPipelineBlocks"
    assert index["unet"][2]["type_hint"] == ["diffusers", "UNet2DConditionModel"]
    assert index["unet"][2]["pretrained_model_name_or_path"] is None


@pytest.mark.parametrize("family", all_families())
def test_file_stands_alone_and_defines_each_name_once(family):
    code = blocks_file(family)
    asked = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821", "-"]
    done = subprocess.run(asked, input=code, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    tree = ast.parse(code)
    assert tree.body[-1].name == f"{family.__name__}Blocks"
    names = [node.name for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))]
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        names += [target.id for target in targets if isinstance(target, ast.Name)]
    assert [name for name, count in Counter(names).items() if count > 1] == []
    roots = {node.module.partition(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert "sona_pipeline" not in roots
