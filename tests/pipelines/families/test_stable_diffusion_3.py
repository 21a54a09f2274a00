"""SONASD3Pipeline against algorithm 2 written apart, and against diffusers' img2img of the same components."""

import copy
import itertools
import math

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3Pipeline,
)
from in_blocks import assert_same_in_blocks
from peft import LoraConfig, get_peft_model_state_dict
from plain_call import STEPS, flow_outlier, in_fresh_process, rows_of
from tiny_pipelines import LENGTH, build
from tiny_text_encoders import clip, t5

from sona_pipeline.pipelines.families.stable_diffusion_3 import SONASD3Pipeline

HEIGHT, WIDTH = 32, 48
STOPS = [2, 6, 4]
IDS, OODS = ["a cat", "a dog", "a barn"], ["a ship", "a hat", "a cup"]
MASKS = ("id_semantic_mask", "id_nuisance_mask", "ood_semantic_mask")
SHIFT, SCALING = 0.0609, 1.5305
CPU = torch.device("cpu")


def components(dtype=torch.float32, dynamic=False, **transformer):
    """A random checkpoint with the layout of Stable Diffusion 3.5 medium: some blocks attend to the image twice."""
    parts = dict(zip(("text_encoder", "tokenizer"), clip(8, pooled=8)))
    parts |= zip(("text_encoder_2", "tokenizer_2"), clip(12, pooled=12, pad_token="!", seed=1))
    parts |= zip(("text_encoder_3", "tokenizer_3"), t5(24))
    layout = {
        "sample_size": 8,
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": 3,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 24,
        "caption_projection_dim": 16,
        "pooled_projection_dim": 20,
        "pos_embed_max_size": 12,
        "dual_attention_layers": (0,),
        "qk_norm": "rms_norm",
    }
    values = {"latent_channels": 16, "shift_factor": SHIFT, "scaling_factor": SCALING}
    values |= {"use_quant_conv": False, "use_post_quant_conv": False}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts["transformer"] = SD3Transformer2DModel(**layout | transformer)
        parts["vae"] = AutoencoderKL.from_config(build()["vae"].config, **values)
    for name, parameter in parts["transformer"].named_parameters():
        if "context_embedder" in name or "add_k_proj" in name:
            parameter.data.mul_(3)
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            part.to(dtype).eval().requires_grad_(False)
    shifts = {"use_dynamic_shifting": True, "base_image_seq_len": 16} if dynamic else {"shift": 3.0}
    return parts | {"scheduler": FlowMatchEulerDiscreteScheduler(**shifts)}


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pictures(dtype=torch.float64):
    return torch.rand(3, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(7), dtype=dtype)


def call(pipe, order=(0, 1, 2), **changes):
    """The latents of images with prompts, stop steps and seeds of their own."""
    given = {
        "image": pictures()[list(order)],
        "id_prompt": [IDS[k] for k in order],
        "ood_prompt": [OODS[k] for k in order],
        "stop_step": [STOPS[k] for k in order],
        "num_inference_steps": STEPS,
        "generator": [torch.Generator().manual_seed(k) for k in order],
        "output_type": "latent",
    }
    return pipe(**given | changes).images


def without(*numbers):
    """The text encoders with these numbers left out."""
    return {f"{name}{'' if k == 1 else f'_{k}'}": None for name in ("text_encoder", "tokenizer") for k in numbers}


# Algorithm 2, one image at a time


def shifted_twice():
    """Sigmas of a schedule with shift 3: diffusers also shifts the ends between which the steps are even."""
    lowest = 3 * 0.001 / (1 + 2 * 0.001)
    even = torch.linspace(1, lowest, STEPS, dtype=torch.float64)
    return [*(3 * even / (1 + 2 * even)), torch.tensor(0.0)]


def shifted_by_size():
    """Sigmas for 4 x 6 patches of 2 x 2 latents, where 16 and 4096 are the ends of the shift."""
    mu = 0.5 + (24 - 16) / (4096 - 16) * (1.15 - 0.5)
    even = torch.linspace(1, 0.001, STEPS, dtype=torch.float64)
    return [*(math.exp(mu) / (math.exp(mu) + 1 / even - 1)), torch.tensor(0.0)]


def one_row(parts):
    """The transformer with one row, and the conditions that diffusers' pipeline has for a text."""
    img2img = StableDiffusion3Img2ImgPipeline(**parts)

    def predict(latents, t, text):
        embeds, _, pooled, _ = img2img.encode_prompt(text, text, text, device=CPU)
        return parts["transformer"](latents, embeds, pooled, t[None]).sample

    return predict


@torch.no_grad()
def test_blocks_make_the_same_outliers():
    assert_same_in_blocks(SONASD3Pipeline(**components(dtype=torch.float64)))


@pytest.mark.parametrize(("dynamic", "sigmas"), [(False, shifted_twice()), (True, shifted_by_size())])
def test_call_is_algorithm_2_with_single_rows_and_costs_three_rows_an_image_and_step(dynamic, sigmas):
    parts = components(torch.float64, dynamic=dynamic)
    pipe, seen = quiet(SONASD3Pipeline(**parts)), []
    with rows_of(pipe.transformer) as rows:
        made = call(
            pipe,
            callback_on_step_end=lambda _, step, t, tensors: seen.append(tensors) or {},
            callback_on_step_end_tensor_inputs=MASKS,
        )
    assert rows == [3, 3, 6, 6, 9, 9]
    for k, stop_step in enumerate(STOPS):
        generator = torch.Generator().manual_seed(k)
        encoded = pipe.vae.encode(pictures()[k : k + 1] * 2 - 1).latent_dist
        source = (encoded.sample(generator) - SHIFT) * SCALING
        noise = torch.randn(source.shape, generator=generator, dtype=torch.float64)
        wanted, masks = flow_outlier(one_row(parts), source, noise, sigmas, stop_step, IDS[k], OODS[k])
        for tensors, found in zip(seen[-stop_step:], masks, strict=True):
            for name, mask in zip(MASKS, found, strict=True):
                assert torch.equal(tensors[name][k], mask[0])
        torch.testing.assert_close(made[k], wanted[0], rtol=1e-4, atol=1e-4)


def test_outlier_does_not_depend_on_its_batch():
    pipe = quiet(SONASD3Pipeline(**components(torch.float64)))
    together = call(pipe)
    for order in ([1], [2, 0]):
        torch.testing.assert_close(call(pipe, order), together[order], rtol=1e-5, atol=1e-5)


# diffusers' own pipeline


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("absent", [{}, without(3)], ids=["all", "without T5"])
def test_global_guidance_is_img2img_of_diffusers(absent, dynamic):
    theirs = quiet(StableDiffusion3Img2ImgPipeline(**components(dynamic=dynamic) | absent))
    ours = quiet(SONASD3Pipeline.from_pipe(theirs))
    image, seed = pictures(torch.float32)[:1], torch.Generator().manual_seed
    given = {"strength": 0.5, "num_inference_steps": STEPS, "guidance_scale": 3.0, "output_type": "latent"}
    sides = {"height": HEIGHT, "width": WIDTH}
    wanted = theirs("a ship", image=image, generator=seed(0), **given, **sides).images
    found = ours(image, "a cat", "a ship", generator=seed(0), global_guidance=True, **given).images
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    back = StableDiffusion3Img2ImgPipeline.from_pipe(ours)
    assert all(getattr(back, name) is part for name, part in theirs.components.items())


ABSENT = [some for count in range(3) for some in itertools.combinations((1, 2, 3), count)]


@pytest.mark.parametrize("absent", ABSENT, ids=str)
def test_text_encoders_that_are_not_there_are_zeros(absent):
    parts = components()
    wanted, _, pooled, _ = StableDiffusion3Img2ImgPipeline(**parts).encode_prompt("a cat", None, None, device=CPU)
    places = {1: slice(8), 2: slice(8, 20)}
    for k in absent:
        if k == 3:
            wanted[:, LENGTH:] = 0
        else:
            wanted[:, :LENGTH, places[k]], pooled[:, places[k]] = 0, 0
    pipe = quiet(SONASD3Pipeline(**parts | without(*absent)))
    length = 256 if 3 not in absent else LENGTH
    if {1, 2} <= set(absent):  # no CLIP tokenizer says its length, and 77 is that of every checkpoint
        wanted = torch.cat([torch.zeros(1, 77, 24), wanted[:, LENGTH:]], dim=1)
    found = pipe.encode_texts(["a cat"], CPU)
    torch.testing.assert_close(found["prompt_embeds"], wanted)
    torch.testing.assert_close(found["pooled_prompt_embeds"], pooled)
    assert pipe.prompt_length == length and pipe.encoded_length == wanted.shape[1]
    assert call(pipe).isfinite().all()


def test_prompts_that_are_too_long_are_cut_where_the_longest_reader_stops(caplog):
    for absent, length in (((), 256), ((3,), LENGTH)):
        pipe = quiet(SONASD3Pipeline(**components() | without(*absent)))
        call(pipe, id_prompt="ab " * 200, guidance_scale=1.0)
        assert f"is longer than {length} tokens and is cut" in caplog.text


def test_clip_skip_is_that_of_diffusers():
    parts = components()
    theirs, ours = StableDiffusion3Img2ImgPipeline(**parts), SONASD3Pipeline(**parts)
    embeds, _, pooled, _ = theirs.encode_prompt("a cat", None, None, clip_skip=1, device=CPU)
    found = ours.encode_texts(["a cat"], CPU, clip_skip=1)
    assert torch.equal(found["prompt_embeds"], embeds) and torch.equal(found["pooled_prompt_embeds"], pooled)


def test_embeddings_by_name_are_the_same_as_prompts_and_need_no_text_encoder():
    parts = components(torch.float64)
    pipe = quiet(SONASD3Pipeline(**parts))
    wanted = call(pipe, id_prompt="a cat", ood_prompt="a hat")
    texts = {"id_prompt": "a cat", "ood_prompt": "a hat", "uncond_prompt": ""}
    given = {f"{name}_embeds": pipe.encode_texts([text], CPU) for name, text in texts.items()}
    bare = quiet(SONASD3Pipeline(**parts | without(1, 2, 3)))
    found = call(bare, id_prompt=None, ood_prompt=None, **given)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    some = {name: value for name, value in given.items() if name == "id_prompt_embeds"}
    torch.testing.assert_close(call(pipe, id_prompt=None, ood_prompt="a hat", **some), wanted, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="has no text encoder: load one, or give `uncond_prompt_embeds`"):
        call(bare, id_prompt=None, **some)


# Loading


def test_saved_pipeline_loads_without_the_package(tmp_path):
    pipe = quiet(SONASD3Pipeline(**components()))
    pipe.save_pretrained(tmp_path)
    image = torch.linspace(0, 1, 3 * 32**2).view(1, 3, 32, 32)
    given = {"stop_step": 2, "num_inference_steps": 4, "output_type": "pt"}
    wanted = pipe(image, "a cat", "a dog", generator=torch.Generator().manual_seed(0), **given).images
    torch.testing.assert_close(in_fresh_process(tmp_path, 32), wanted.flatten()[:50], rtol=0, atol=1e-3)


@pytest.mark.parametrize("absent", [{}, without(3)], ids=["all", "without T5"])
def test_checkpoint_of_diffusers_loads_with_the_single_file(absent, tmp_path):
    parts = components() | absent
    StableDiffusion3Pipeline(**parts).save_pretrained(tmp_path)
    code = str(SONASD3Pipeline.standalone_file())
    pipe = DiffusionPipeline.from_pretrained(tmp_path, custom_pipeline=code, trust_remote_code=True)
    assert type(pipe).__name__ == "SONASD3Pipeline"
    wanted = call(quiet(SONASD3Pipeline(**parts)), guidance_scale=1.0)
    torch.testing.assert_close(call(quiet(pipe), guidance_scale=1.0), wanted, rtol=0, atol=1e-3)


def test_lora_of_the_transformer(tmp_path, monkeypatch):
    # transformers 5.24 asks for a peft that is not released, and works with the one that is
    monkeypatch.setattr("transformers.integrations.peft.check_peft_version", lambda min_version: None)
    pipe = quiet(SONASD3Pipeline(**components()))
    adapted = copy.deepcopy(pipe.transformer)
    torch.manual_seed(0)
    adapted.add_adapter(LoraConfig(r=2, lora_alpha=8, target_modules=["to_q", "to_v"], init_lora_weights=False))
    SONASD3Pipeline.save_lora_weights(tmp_path, transformer_lora_layers=get_peft_model_state_dict(adapted))
    before = call(pipe, guidance_scale=1.0)
    pipe.load_lora_weights(tmp_path)
    assert (call(pipe, guidance_scale=1.0) - before).abs().max() > 0.01
    found = call(pipe, guidance_scale=1.0, cross_attention_kwargs={"scale": 0.0})
    torch.testing.assert_close(found, before, rtol=0, atol=1e-3)


# Dtypes and offloading


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_half_denoiser_keeps_float32_latents(half):
    pipe, asked = quiet(SONASD3Pipeline(**components())), []
    wanted = call(pipe, guidance_scale=0.0)
    pipe.transformer.to(half)
    pipe.transformer.register_forward_pre_hook(lambda _, args: asked.extend(value.dtype for value in args[:3]))
    made = call(pipe, guidance_scale=0.0)
    assert set(asked) == {half} and made.dtype == torch.float32
    assert not torch.equal(made.to(half).float(), made)
    torch.testing.assert_close(made, wanted, rtol=0, atol=0.05 * float(wanted.abs().max()))
    assert pipe.to(half)(pictures(), IDS, OODS, num_inference_steps=2, output_type="pt").images.isfinite().all()


def test_images_beyond_the_positions_of_the_transformer_are_refused():
    pipe = quiet(SONASD3Pipeline(**components()))  # 12 patches of 2 x 2 latents, which stand for 4 x 4 pixels each
    assert call(pipe, image=torch.rand(3, 3, 96, 32)).shape == (3, 16, 24, 8)
    for image, said in (
        (torch.rand(3, 3, 104, 32), "Images are 32 x 104, but the model takes at most 96 a side: resize them"),
        (torch.rand(3, 16, 8, 26), "Latents are 26 x 8, but the model takes at most 24 a side: resize them"),
    ):
        with pytest.raises(ValueError, match=said):
            call(pipe, image=image)


def test_parts_are_offloaded_in_the_order_of_their_last_use():
    pipe, used = quiet(SONASD3Pipeline(**components())), []
    wanted = call(pipe, output_type="pt")
    for name in ("text_encoder", "text_encoder_2", "text_encoder_3", "transformer", "vae"):
        part = pipe.vae.decoder if name == "vae" else getattr(pipe, name)
        part.register_forward_hook(lambda *args, name=name: used.append(name))
    pipe.enable_model_cpu_offload(device="cpu")
    torch.testing.assert_close(call(pipe, output_type="pt"), wanted, rtol=0, atol=1e-3)
    assert pipe.model_cpu_offload_seq.split("->") == list(dict.fromkeys(used))


# Checkpoints of another kind


def flux():
    layout = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2}
    return FluxTransformer2DModel(**layout, joint_attention_dim=24, pooled_projection_dim=20, axes_dims_rope=(4, 6, 6))


PLAIN = "take the plain text-to-image checkpoint of Stable Diffusion 3 and 3.5"
OTHERS = {
    "inpainting": (
        lambda: {"transformer": components(in_channels=33)["transformer"]},
        f"The transformer takes 33 channels, and so masks, too: {PLAIN}",
    ),
    "FLUX": (
        lambda: {"transformer": flux()},
        f"`transformer` is a FluxTransformer2DModel without 'pos_embed_max_size': {PLAIN}",
    ),
    "UNet": (lambda: {"transformer": build()["unet"]}, "is a UNet2DConditionModel without 'joint_attention_dim'"),
    "4 channels": (
        lambda: {"vae": build()["vae"]},
        "makes latents of 4 channels and the transformer takes 16: take both",
    ),
    "DDIM": (
        lambda: {"scheduler": DDIMScheduler()},
        "`DDIMScheduler` has no .* not made for flow models: take FlowMatchEulerDiscreteScheduler",
    ),
    "other CLIP": (
        lambda: {"text_encoder": clip(16, pooled=16)[0]},
        "give 28 numbers, pool to 28; the transformer takes 20: take one's",
    ),
    "CLIP that pools otherwise": (lambda: {"text_encoder": clip(16, pooled=8)[0]}, "give 28 numbers, pool to 20"),
    "other T5": (
        lambda: {"text_encoder_3": t5(16)[0]},
        "`text_encoder_3` gives embeddings of width 16 and the transformer takes 24",
    ),
}


@pytest.mark.parametrize(("changes", "message"), OTHERS.values(), ids=OTHERS)
def test_checkpoint_of_another_kind_is_refused_in_a_sentence(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        SONASD3Pipeline(**components() | changes())
    assert "\n" not in str(caught.value)


def test_images_are_of_whole_patches_and_as_large_as_the_transformer_says():
    pipe = SONASD3Pipeline(**components())
    assert pipe.image_size == 32
    with pytest.raises(ValueError, match="Images are 36 x 32 pixels, but the model takes multiples of 8"):
        call(pipe, image=torch.zeros(3, 3, 32, 36))
