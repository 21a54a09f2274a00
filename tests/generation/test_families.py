"""Any family of models through the whole job: found by its checkpoint, and held to what Stable Diffusion is held to."""

import copy
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import write_sample
from safetensors.torch import save_file
from tiny_family import SONATinyFlowPipeline, known, save_as_diffusers, tiny_flow

from sona_pipeline import SONAPipeline, generate_outliers, load_pipeline, open_images, pipeline_encoder, read_rows
from sona_pipeline.cli.app import main
from sona_pipeline.data.outlier_set import read_settings
from sona_pipeline.generation.checkpoint import find_batch_size, model_place
from sona_pipeline.generation.estimate import estimate
from sona_pipeline.generation.families import all_families, family_of_index, is_flow, needed_parts
from sona_pipeline.generation.generate import check_run, make_plan, settled_model
from sona_pipeline.generation.make import OutlierMaker
from sona_pipeline.generation.ood_labels import LARGE, similarities
from sona_pipeline.generation.plan import plan_outliers
from sona_pipeline.generation.settings import GenerationSettings, ModelSettings, OutputSettings, settings_in
from sona_pipeline.generation.ways import WAYS

SETTINGS = GenerationSettings(ood_labels=("bag", "sandal"), num_inference_steps=5, guidance_scale=3.0)
OF_STABLE_DIFFUSION = ("dream", "sega", "ledits", "leditspp", "diffedit", "oir")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A checkpoint of the family, as diffusers writes it."""
    folder = tmp_path_factory.mktemp("flow") / "model"
    save_as_diffusers(tiny_flow(), folder)
    return folder


@pytest.fixture(scope="module")
def pipe():
    return tiny_flow()


@pytest.fixture
def images(tmp_path):
    write_sample(tmp_path / "photos", 12)
    return open_images(tmp_path / "photos")


# Which family it is


@pytest.mark.parametrize("family", [*all_families()], ids=lambda family: family.__name__)
def test_every_family_says_what_it_takes(family):
    assert family.title and family.checkpoints
    names = [name for other in all_families() for name in other.checkpoints]
    assert len(names) == len(set(names))
    assert {"vae", "scheduler"} <= needed_parts(family)
    index = {part: ["diffusers", "X"] for part in needed_parts(family)}
    for name in (*family.checkpoints, ["pipeline", family.__name__]):
        assert family_of_index("here", index | {"_class_name": name}) is family


def test_checkpoint_is_loaded_by_its_family_with_its_own_scheduler(checkpoint):
    with known():
        found = load_pipeline(str(checkpoint), "cpu", dtype="float32")
        fast = load_pipeline(str(checkpoint), "cpu", dtype="float32", scheduler="fast")
    assert type(found) is type(fast) is SONATinyFlowPipeline
    assert (is_flow(type(found)), is_flow(SONAPipeline)) == (True, False)
    assert type(fast.scheduler).__name__ == type(found.scheduler).__name__ == "FlowMatchEulerDiscreteScheduler"
    assert found.scheduler.config.shift == fast.scheduler.config.shift == 2.0


def test_bfloat16_is_that_of_denoiser_and_text_encoders_of_flow_models(checkpoint, tmp_path, monkeypatch):
    with known():
        found = load_pipeline(str(checkpoint), "cpu", dtype="bfloat16")
        monkeypatch.setattr("sona_pipeline.generation.generate.usable_device", lambda _: torch.device("cuda"))
        dtypes = {
            model: settled_model(ModelSettings(model), tmp_path / "none").dtype for model in (str(checkpoint), "tiny")
        }
    assert (found.unet.dtype, found.text_encoder.dtype, found.vae.dtype) == (torch.bfloat16,) * 2 + (torch.float32,)
    assert dtypes == {str(checkpoint): "bfloat16", "tiny": "float16"}


@pytest.mark.parametrize("scheduler", ["ddim", "euler"])
def test_schedulers_of_noise_are_refused_for_flow_models_before_weights_are_read(scheduler, checkpoint, monkeypatch):
    monkeypatch.setattr(SONATinyFlowPipeline, "from_pretrained", lambda *_, **__: pytest.fail("it is loaded"))
    said = rf"the scheduler '{scheduler}' is for models that predict noise, and .* \(Tiny Flow\) predicts the velocity"
    with known(), pytest.raises(ValueError, match=said):
        load_pipeline(str(checkpoint), "cpu", scheduler=scheduler)


KINDS = {
    "StableDiffusionInpaintPipeline": "which fills in masks",
    "FluxKontextPipeline": "which edits images as it is told",
    "QwenImageEditPlusPipeline": "which edits images as it is told",
    "StableDiffusionXLControlNetPipeline": "which takes other images beside the prompt",
    "CogVideoXPipeline": "which makes videos",
    "KandinskyV22CombinedPipeline": "and of no family that is known",
    None: "and of no family that is known",
}


@pytest.mark.parametrize("name", KINDS)
def test_pipelines_of_no_family_are_named(name, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model_index.json").write_text(json.dumps({"_class_name": name, "vae": ["diffusers", "AutoencoderKL"]}))
    with pytest.raises(ValueError, match=rf"model is a {name},? {KINDS[name]}.*: take .*Stable Diffusion 1.x and 2.x"):
        load_pipeline(str(folder), "cpu")


def test_a_distilled_model_is_refused_before_its_weights_are_read():
    index = {"_class_name": "Flux2KleinPipeline", "is_distilled": True}
    with pytest.raises(ValueError, match=r"klein-4B is distilled .*: take the base model of FLUX.2 \[klein\]"):
        family_of_index("klein-4B", index)


@pytest.mark.parametrize(("name", "is_warned"), [("sdxl-turbo", True), ("My_LCM v2", True), ("turbofan", False)])
def test_a_model_that_is_distilled_by_its_name_is_warned_of(name, is_warned, checkpoint, tmp_path, caplog):
    (tmp_path / name).symlink_to(checkpoint, target_is_directory=True)
    with known():
        load_pipeline(str(tmp_path / name), "cpu", dtype="float32")
    said = [record.getMessage() for record in caplog.records if "take the base model" in record.getMessage()]
    assert len(said) == is_warned and all(name in one for one in said)


def test_a_part_that_is_missing_is_named():
    index = {"_class_name": "StableDiffusionPipeline", "vae": ["a", "b"], "unet": ["a", "b"], "tokenizer": [None, None]}
    with pytest.raises(
        ValueError, match="is a StableDiffusionPipeline without scheduler, text_encoder, tokenizer: take"
    ):
        family_of_index("here", index)


def test_configuration_says_the_family_of_a_single_file(checkpoint, tmp_path):
    path = tmp_path / "flow.safetensors"
    save_file({"double_blocks.0.a": torch.zeros(1)}, path)
    with known(), pytest.raises(ValueError, match=re.escape("and Tiny Flow comes in diffusers' form only")):
        model_place(ModelSettings(str(path), model_config=str(checkpoint)))
    with (
        known(),
        pytest.raises(ValueError, match=r"of another family than .*Stable Diffusion 1.x and 2.x.*--model-config"),
    ):
        model_place(ModelSettings(str(path)))


# What is made


def test_outlier_is_what_one_call_of_the_pipeline_gives_for_its_image_alone(images):
    pipe = tiny_flow(torch.float64)
    plan = plan_outliers(images, SETTINGS)
    maker = OutlierMaker(pipe, plan)
    work = maker.denoise(maker.encode(maker.read(plan.batch(np.arange(len(plan))))))
    assert len({item.stop_step for item in work.items}) > 2
    for item, pixels, latents in zip(work.items, work.pixels, work.outlier_latents):
        alone = pipe(
            pixels[None] / 2 + 0.5,
            f"a photo of a {images.label_name(item.index)}",
            f"a photo of a {item.ood_label}",
            stop_step=item.stop_step,
            num_inference_steps=5,
            guidance_scale=3.0,
            generator=torch.Generator().manual_seed(item.seed),
            output_type="latent",
        ).images[0]
        torch.testing.assert_close(latents, alone, rtol=1e-6, atol=1e-8)
    assert len(torch.unique(work.outlier_latents.flatten(1), dim=0)) == len(plan)


def test_images_of_several_stop_steps_share_calls(images, pipe):
    rows = []
    handle = pipe.unet.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    try:
        plan = plan_outliers(images, SETTINGS)
        maker = OutlierMaker(pipe, plan)
        maker.denoise(maker.encode(maker.read(plan.batch(np.arange(len(plan))))))
    finally:
        handle.remove()
    steps = plan.stop_steps
    assert rows == [3 * int((steps >= left).sum()) for left in range(steps.max(), 0, -1)]
    assert sum(rows) == plan.unet_rows


def test_a_set_is_the_same_whatever_its_batches_and_when_it_goes_on(images, tmp_path):
    pipe, hashes = tiny_flow(torch.float64), {}
    for name, batch_size in (("whole", 12), ("small", 5)):
        generate_outliers(images, pipe, tmp_path / name, SETTINGS, OutputSettings(batch_size=batch_size))
    generate_outliers(images.take(range(5)), pipe, tmp_path / "stopped", SETTINGS, OutputSettings(batch_size=3))
    generate_outliers(images, pipe, tmp_path / "stopped", SETTINGS, OutputSettings(batch_size=4))
    for name in ("whole", "small", "stopped"):
        hashes[name] = {row["source_key"]: row["sha256"] for row in read_rows(tmp_path / name)}
        assert len(hashes[name]) == len(images)
    assert hashes["whole"] == hashes["small"] == hashes["stopped"]
    record = read_settings(tmp_path / "whole")
    assert record["scheduler"] == "FlowMatchEulerDiscreteScheduler"
    assert record["notes"]["pipeline"] == "SONATinyFlowPipeline" and settings_in(record)["scheduler"] == "auto"


@pytest.mark.parametrize(
    "way", [name for name in WAYS if not WAYS[name].needs_unet and not WAYS[name].needs_classifier]
)
def test_ways_that_go_with_any_family(way, images, pipe, tmp_path):
    settings = replace(SETTINGS, way=way, num_inference_steps=2)
    generate_outliers(images, pipe, tmp_path / "set", settings)
    assert len(list(read_rows(tmp_path / "set"))) == len(images)


@pytest.mark.parametrize("way", OF_STABLE_DIFFUSION)
def test_ways_that_need_the_unet_of_stable_diffusion_are_refused(way, images, pipe):
    with pytest.raises(
        ValueError, match=f"the way '{way}' works on the UNet of .*, and this model is of Tiny Flow"
    ) as caught:
        check_run(images, pipe, replace(SETTINGS, way=way), OutputSettings())
    assert "sona, global, text" in str(caught.value)
    assert {name for name in WAYS if WAYS[name].needs_unet} == set(OF_STABLE_DIFFUSION)


def test_embeddings_in_a_file_stand_for_one_condition_only(images, pipe, tmp_path):
    save_file({"bag": torch.zeros(16)}, tmp_path / "some.safetensors")
    settings = replace(SETTINGS, ood_labels=("bag",), ood_embeddings=str(tmp_path / "some.safetensors"))
    with pytest.raises(ValueError, match="this model needs all: give OOD labels instead"):
        generate_outliers(images, pipe, tmp_path / "set", settings)


# Labels


def test_labels_are_compared_by_the_pooled_prompt(pipe):
    texts = ["a cat", "a dog", "an old boat"]
    wanted = pipe.encode_texts(texts, pipe.device)["pooled_prompt_embeds"]
    torch.testing.assert_close(pipeline_encoder(pipe)(texts), wanted)


@pytest.mark.parametrize("key", ["mask", "length"])
def test_labels_are_compared_by_the_mean_of_the_tokens_without_a_pooled_prompt(key, pipe, monkeypatch):
    encode = SONATinyFlowPipeline.encode_texts

    def without_pooled(self, texts, device):
        found = encode(self, texts, device)
        kinds = {"mask": found["mask"], "length": found["mask"].sum(dim=1)}
        return {"prompt_embeds": found["prompt_embeds"], key: kinds[key]}

    monkeypatch.setattr(SONATinyFlowPipeline, "encode_texts", without_pooled)
    texts = ["a cat", "an old boat"]
    given = encode(pipe, texts, pipe.device)
    for one, states, mask in zip(pipeline_encoder(pipe)(texts), given["prompt_embeds"], given["mask"]):
        torch.testing.assert_close(one, states[mask.bool()].mean(dim=0))


def test_large_text_encoders_are_not_copied(pipe, monkeypatch):
    texts = ["a cat", "a dog"]
    small = pipeline_encoder(pipe)(texts)
    assert LARGE > 10**9
    monkeypatch.setattr("sona_pipeline.generation.ood_labels.LARGE", 10)
    monkeypatch.setattr(copy, "deepcopy", lambda _: pytest.fail("it is copied"))
    torch.testing.assert_close(pipeline_encoder(pipe)(texts), small)


def test_close_labels_are_those_of_the_familys_encoder(images, pipe):
    settings = replace(
        SETTINGS, ood_labels=tuple(f"{word} thing" for word in "abcdefghijklmnopqrst"), label_choice="close"
    )
    plan = make_plan(images, pipe, settings)
    prompts = [f"a photo of a {name}" for name in images.classes], [f"a photo of a {x}" for x in settings.ood_labels]

    def encode(texts):
        return pipe.encode_texts(list(texts), pipe.device)["pooled_prompt_embeds"]

    near = np.argsort(-similarities(encode, *prompts), axis=1)[:, :2]
    for item in plan:
        place = settings.ood_labels.index(item.ood_label)
        assert place in near[images.labels[item.index]]


# Costs, and the command


def test_costs_are_measured(images, pipe, tmp_path):
    plan = plan_outliers(images, SETTINGS)
    cost = estimate(plan, pipe, tmp_path, 4)
    assert cost.unet_rows == 3 * int(plan.stop_steps.sum()) and cost.seconds > 0 and cost.bytes > 0
    assert find_batch_size(pipe, 32, most=4) in (1, 2, 4)


def test_command_makes_a_set_with_any_family(checkpoint, images, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "labels.txt").write_text("bag\nsandal\n")
    line = ["generate", "--data", "photos", "--output", "out", "--model", str(checkpoint)]
    line += ["--device", "cpu", "--ood-labels", "labels.txt", "--steps", "2"]
    with known():
        main([*line, "--dry-run"])
        said = " ".join(capsys.readouterr().out.split())
        assert "2 steps of FlowMatchEulerDiscreteScheduler" in said and "in the denoiser" in said
        main([*line, "--batch-size", "auto", "--label-choice", "far"])
        with pytest.raises(SystemExit) as end:
            main([*line[:4], "other", *line[5:], "--scheduler", "unipc"])
    assert end.value.code == 2 and "leave --scheduler out" in " ".join(capsys.readouterr().err.split())
    assert len(list(read_rows(tmp_path / "out"))) == len(images)
    assert not (tmp_path / "other").exists()
