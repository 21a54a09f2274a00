"""SONAXLPipeline against algorithm 2 written apart, and against diffusers' img2img of the same components."""

import copy

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import convert_state_dict_to_diffusers
from in_blocks import assert_same_in_blocks
from peft import LoraConfig, get_peft_model_state_dict
from plain_call import STEPS, guided, in_fresh_process, rows_of
from single_files import write_single_file
from tiny_pipelines import SCHEDULE, build
from tiny_text_encoders import clip

from sona_pipeline import load_pipeline
from sona_pipeline.pipelines.families.stable_diffusion_xl import SONAXLPipeline

# diffusers' schedulers and NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

HEIGHT, WIDTH = 32, 48
STOPS = [2, 6, 4]
IDS, OODS = ["a cat", "a dog", "a barn"], ["a ship", "a hat", "a cup"]
MASKS = ("id_semantic_mask", "id_nuisance_mask", "ood_semantic_mask")


def components(scheduler=EulerDiscreteScheduler, prediction_type="epsilon", dtype=torch.float32, **unet):
    """A random checkpoint with the layout of Stable Diffusion XL: the UNet starts with a block without attention."""
    first, tokenizer = clip(8)
    second, tokenizer_2 = clip(16, pooled=12, pad_token="!", seed=1)
    layout = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "block_out_channels": [8, 16],
        "layers_per_block": 1,
        "transformer_layers_per_block": [1, 2],
        "attention_head_dim": [2, 4],
        "use_linear_projection": True,
        "norm_num_groups": 4,
        "cross_attention_dim": 24,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 12 + 6 * 8,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        denoiser = UNet2DConditionModel(**layout | unet)
        vae = AutoencoderKL.from_config(build()["vae"].config, scaling_factor=0.13025)
    for name, parameter in denoiser.named_parameters():
        if "attn2.to_out" in name or "add_embedding" in name:
            parameter.data.mul_(4)
    models = {"vae": vae, "text_encoder": first, "text_encoder_2": second, "unet": denoiser}
    return {
        **{name: model.to(dtype).eval().requires_grad_(False) for name, model in models.items()},
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer_2,
        "scheduler": scheduler.from_config(DDIMScheduler(**SCHEDULE, prediction_type=prediction_type).config),
    }


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


# Algorithm 2 with Stable Diffusion's schedules, one image at a time

ALPHAS = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)
TIMES = [1 + k * (1000 // STEPS) for k in reversed(range(STEPS))]


def ddim_outlier(predict, source, noise, stop_step, kind, *texts):
    """An outlier of latents `[1, C, H, W]` by DDIM, and the masks of its steps."""
    times = TIMES[-stop_step:]
    x, masks = ALPHAS[times[0]].sqrt() * source + (1 - ALPHAS[times[0]]).sqrt() * noise, []
    for t, after in zip(times, [*times[1:], 0]):
        output, found = guided(predict, x, torch.tensor(t), *texts)
        a, b = ALPHAS[t].sqrt(), (1 - ALPHAS[t]).sqrt()
        clean, eps = ((x - b * output) / a, output) if kind == "epsilon" else (a * x - b * output, a * output + b * x)
        x = ALPHAS[after].sqrt() * clean + (1 - ALPHAS[after]).sqrt() * eps
        masks.append(found)
    return x, masks


def euler_outlier(predict, source, noise, stop_step, kind, *texts):
    """The same by Euler's steps, for latents with noise of the level sigma that are not scaled down."""
    times = TIMES[-stop_step:]
    sigmas = [((1 - ALPHAS[t]) / ALPHAS[t]).sqrt() for t in times] + [torch.tensor(0.0)]
    x, masks = source + sigmas[0] * noise, []
    for t, sigma, after in zip(times, sigmas, sigmas[1:]):
        seen = x / (1 + sigma**2).sqrt()
        output, found = guided(predict, seen, torch.tensor(t), *texts)
        slope = output if kind == "epsilon" else output / (1 + sigma**2).sqrt() + x * sigma / (1 + sigma**2)
        x = x + (after - sigma) * slope
        masks.append(found)
    return x, masks


def one_row(parts, force_zeros):
    """The UNet with one row, and the conditions that diffusers' pipeline has for a text."""
    img2img = StableDiffusionXLImg2ImgPipeline(**parts, force_zeros_for_empty_prompt=force_zeros)

    def predict(latents, t, text):
        embeds, empty, pooled, empty_pooled = img2img.encode_prompt(text or "a", device=torch.device("cpu"))
        sizes = torch.tensor([[HEIGHT, WIDTH, 0, 0, HEIGHT, WIDTH]])
        said = {"text_embeds": pooled if text else empty_pooled, "time_ids": sizes}
        return parts["unet"](latents, t, embeds if text else empty, added_cond_kwargs=said).sample

    return predict


CASES = [
    (DDIMScheduler, "epsilon", True),
    (DDIMScheduler, "v_prediction", False),
    (EulerDiscreteScheduler, "epsilon", False),
    (EulerDiscreteScheduler, "v_prediction", True),
]


@torch.no_grad()
@pytest.mark.parametrize(("scheduler", "kind", "force_zeros"), CASES)
def test_call_is_algorithm_2_with_single_rows_and_costs_three_rows_an_image_and_step(scheduler, kind, force_zeros):
    parts = components(scheduler, kind, dtype=torch.float64)
    pipe, seen = quiet(SONAXLPipeline(**parts, force_zeros_for_empty_prompt=force_zeros)), []
    with rows_of(pipe.unet) as rows:
        made = call(
            pipe,
            callback_on_step_end=lambda _, step, t, tensors: seen.append(tensors) or {},
            callback_on_step_end_tensor_inputs=MASKS,
        )
    assert rows == [3, 3, 6, 6, 9, 9]
    way = ddim_outlier if scheduler is DDIMScheduler else euler_outlier
    for k, stop_step in enumerate(STOPS):
        generator = torch.Generator().manual_seed(k)
        encoded = pipe.vae.encode(pictures()[k : k + 1] * 2 - 1).latent_dist
        source = encoded.sample(generator) * 0.13025
        noise = torch.randn(source.shape, generator=generator, dtype=torch.float64)
        wanted, masks = way(one_row(parts, force_zeros), source, noise, stop_step, kind, IDS[k], OODS[k])
        for tensors, found in zip(seen[-stop_step:], masks, strict=True):
            for name, mask in zip(MASKS, found, strict=True):
                assert torch.equal(tensors[name][k], mask[0])
        torch.testing.assert_close(made[k], wanted[0], rtol=1e-4, atol=1e-4)


def test_outlier_does_not_depend_on_its_batch():
    pipe = quiet(SONAXLPipeline(**components(dtype=torch.float64)))
    together = call(pipe)
    for order in ([1], [2, 0]):
        torch.testing.assert_close(call(pipe, order), together[order], rtol=1e-5, atol=1e-5)


# diffusers' own pipeline


def test_blocks_make_the_same_outliers():
    pipe = SONAXLPipeline(**components(dtype=torch.float64), force_zeros_for_empty_prompt=False)
    assert_same_in_blocks(pipe)


@pytest.mark.parametrize("force_zeros", [True, False])
@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler])
def test_global_guidance_is_img2img_of_diffusers(scheduler, force_zeros):
    theirs = quiet(StableDiffusionXLImg2ImgPipeline(**components(scheduler), force_zeros_for_empty_prompt=force_zeros))
    ours = quiet(SONAXLPipeline.from_pipe(theirs))
    assert ours.config.force_zeros_for_empty_prompt == force_zeros
    image, seed = pictures(torch.float32)[:1], torch.Generator().manual_seed
    given = {"strength": 0.5, "num_inference_steps": STEPS, "guidance_scale": 3.0, "output_type": "latent"}
    wanted = theirs("a ship", image=image, generator=seed(0), **given).images
    found = ours(image, "a cat", "a ship", generator=seed(0), global_guidance=True, **given).images
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    back = StableDiffusionXLImg2ImgPipeline.from_pipe(ours)
    assert all(getattr(back, name) is part for name, part in theirs.components.items() if part is not None)


def test_clip_skip_is_that_of_diffusers_and_leaves_the_empty_prompt_alone():
    parts = components()
    theirs, ours = StableDiffusionXLImg2ImgPipeline(**parts), quiet(SONAXLPipeline(**parts))
    embeds, _, pooled, _ = theirs.encode_prompt("a cat", clip_skip=1, device=torch.device("cpu"))
    found = ours.encode_texts(["a cat"], torch.device("cpu"), clip_skip=1)
    assert torch.equal(found["prompt_embeds"], embeds) and torch.equal(found["pooled_prompt_embeds"], pooled)
    with pytest.raises(ValueError, match="`clip_skip` is 3, but the text encoder has 2 layers only to skip"):
        call(ours, clip_skip=3)


def test_embeddings_by_name_are_the_same_as_prompts_and_need_no_text_encoder():
    parts = components(dtype=torch.float64)
    pipe = quiet(SONAXLPipeline(**parts))
    wanted = call(pipe, id_prompt="a cat", ood_prompt="a hat")
    texts = {"id_prompt": "a cat", "ood_prompt": "a hat", "uncond_prompt": ""}
    given = {f"{name}_embeds": pipe.encode_texts([text], torch.device("cpu")) for name, text in texts.items()}
    nothing = {name: None for name in ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")}
    bare = quiet(SONAXLPipeline(**parts | nothing))
    found = call(bare, id_prompt=None, ood_prompt=None, **given)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"has no text encoder: load one, or give `uncond_prompt_embeds`, too\."):
        call(bare, id_prompt=None, ood_prompt=None, **given | {"uncond_prompt_embeds": None})
    with pytest.raises(ValueError, match=r"`id_prompt_embeds` has \['prompt_embeds'\], but .* are needed"):
        call(bare, id_prompt=None, id_prompt_embeds=given["id_prompt_embeds"]["prompt_embeds"])


# Loading


def test_saved_pipeline_loads_without_the_package(tmp_path):
    pipe = quiet(SONAXLPipeline(**components(), force_zeros_for_empty_prompt=False))
    pipe.save_pretrained(tmp_path)
    image = torch.linspace(0, 1, 3 * 32**2).view(1, 3, 32, 32)
    given = {"stop_step": 2, "num_inference_steps": 4, "output_type": "pt"}
    wanted = pipe(image, "a cat", "a dog", generator=torch.Generator().manual_seed(0), **given).images
    torch.testing.assert_close(in_fresh_process(tmp_path, 32), wanted.flatten()[:50], rtol=0, atol=1e-3)


def test_checkpoint_of_diffusers_loads_with_the_single_file(tmp_path):
    parts = components()
    StableDiffusionXLPipeline(**parts).save_pretrained(tmp_path)
    code = str(SONAXLPipeline.standalone_file())
    pipe = DiffusionPipeline.from_pretrained(tmp_path, custom_pipeline=code, trust_remote_code=True)
    assert type(pipe).__name__ == "SONAXLPipeline"
    wanted = call(quiet(SONAXLPipeline(**parts)), guidance_scale=1.0)
    torch.testing.assert_close(call(quiet(pipe), guidance_scale=1.0), wanted, rtol=0, atol=1e-3)


def test_lora_of_unet_and_both_text_encoders(tmp_path, monkeypatch):
    # transformers 5.24 asks for a peft that is not released, and works with the one that is
    monkeypatch.setattr("transformers.integrations.peft.check_peft_version", lambda min_version: None)
    pipe, layers = quiet(SONAXLPipeline(**components())), {}
    for part, targets in (("unet", ["to_q"]), ("text_encoder", ["q_proj"]), ("text_encoder_2", ["q_proj"])):
        adapted = copy.deepcopy(getattr(pipe, part))
        torch.manual_seed(0)
        adapted.add_adapter(LoraConfig(r=2, lora_alpha=8, target_modules=targets, init_lora_weights=False))
        layers[f"{part}_lora_layers"] = convert_state_dict_to_diffusers(get_peft_model_state_dict(adapted))
    SONAXLPipeline.save_lora_weights(tmp_path, **layers)
    without = call(pipe, guidance_scale=1.0)
    pipe.load_lora_weights(tmp_path)
    assert (call(pipe, guidance_scale=1.0) - without).abs().max() > 0.01
    found = call(pipe, guidance_scale=1.0, cross_attention_kwargs={"scale": 0.0})
    torch.testing.assert_close(found, without, rtol=0, atol=1e-3)


# Dtypes and offloading


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_half_denoiser_keeps_float32_latents(half):
    pipe, asked = quiet(SONAXLPipeline(**components())), []
    wanted = call(pipe, guidance_scale=0.0)
    pipe.unet.to(half)
    pipe.unet.register_forward_pre_hook(
        lambda _, args, named: asked.extend([args[0].dtype, named["encoder_hidden_states"].dtype]), with_kwargs=True
    )
    made = call(pipe, guidance_scale=0.0)
    assert set(asked) == {half} and made.dtype == torch.float32
    assert not torch.equal(made.to(half).float(), made)
    torch.testing.assert_close(made, wanted, rtol=0, atol=0.05 * float(wanted.abs().max()))
    assert pipe.to(half)(pictures(), IDS, OODS, num_inference_steps=2, output_type="pt").images.isfinite().all()


@pytest.mark.parametrize("way", ["from_single_file", "load_pipeline"])
def test_weights_in_one_file(way, tmp_path):
    pipe = quiet(SONAXLPipeline(**components(DDIMScheduler)))
    StableDiffusionXLPipeline(**components(DDIMScheduler)).save_pretrained(tmp_path / "model")
    write_single_file(pipe, path := tmp_path / "xl.safetensors")
    for weights in (tmp_path / "model").rglob("*.safetensors"):
        weights.unlink()
    config = str(tmp_path / "model")
    if way == "from_single_file":
        other = SONAXLPipeline.from_single_file(path, config=config)
    else:
        other = load_pipeline(str(path), "cpu", model_config=config, dtype="float32")
    images = pictures(torch.float32)
    torch.testing.assert_close(call(quiet(other), image=images), call(pipe, image=images), rtol=0, atol=1e-3)


def test_parts_are_offloaded_in_the_order_of_their_last_use():
    pipe, used = quiet(SONAXLPipeline(**components())), []
    wanted = call(pipe, output_type="pt")
    for name in ("text_encoder", "text_encoder_2", "unet", "vae"):
        part = pipe.vae.decoder if name == "vae" else getattr(pipe, name)
        part.register_forward_hook(lambda *args, name=name: used.append(name))
    pipe.enable_model_cpu_offload(device="cpu")
    torch.testing.assert_close(call(pipe, output_type="pt"), wanted, rtol=0, atol=1e-3)
    assert pipe.model_cpu_offload_seq.split("->") == list(dict.fromkeys(used))


# Checkpoints of another kind


def changed(**unet):
    return lambda: {"unet": components(**unet)["unet"]}


def playground():
    return {"vae": AutoencoderKL.from_config(components()["vae"].config, latents_mean=[0.0] * 4, latents_std=[1.0] * 4)}


BASE = "take the base checkpoint"
PLAIN = "take the plain text-to-image checkpoint of Stable Diffusion XL"
OTHERS = {
    "refiner by its setting": (lambda: {"requires_aesthetics_score": True}, f"is a refiner .*: {BASE}"),
    "refiner by its encoder": (lambda: {"text_encoder": None, "tokenizer": None}, f"is a refiner .*: {BASE}"),
    "no second encoder": (lambda: {"text_encoder_2": None}, f"`text_encoder_2` is missing, .*: {BASE}"),
    "inpainting": (changed(in_channels=9), rf"made for masks, too \(inpainting\); {PLAIN}"),
    "editing": (changed(in_channels=8), rf"\(InstructPix2Pix\); {PLAIN}"),
    "LCM": (changed(time_cond_proj_dim=8), rf"distilled .*\(time_cond_proj_dim 8, as in LCM\).*: {PLAIN}"),
    "Kolors": (
        changed(encoder_hid_dim_type="text_proj", encoder_hid_dim=8),
        f"has encoder_hid_dim_type 'text_proj' .*: {PLAIN}",
    ),
    "Stable Diffusion 2": (
        lambda: {"unet": build()["unet"]},
        rf"is of Stable Diffusion 1.x or 2.x \(addition_embed_type None\): {PLAIN}",
    ),
    "other encoder": (
        lambda: {"text_encoder": clip(16)[0]},
        f"of width 32 and pool to 12, and the UNet takes 24 and 12: {BASE}",
    ),
    "encoder that does not pool": (lambda: {"text_encoder_2": clip(16)[0]}, "with its `CLIPTextModelWithProjection`"),
    "Playground": (playground, f"The VAE has latents_mean, as in Playground 2.5, .*: {BASE}"),
    "EDM": (lambda: {"scheduler": EDMEulerScheduler()}, "`EDMEulerScheduler` has no 'alphas_cumprod'"),
}


@pytest.mark.parametrize(("changes", "message"), OTHERS.values(), ids=OTHERS)
def test_checkpoint_of_another_kind_is_refused_in_a_sentence(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        SONAXLPipeline(**components() | changes())
    assert "\n" not in str(caught.value)


def test_pndm_becomes_ddim_and_size_is_that_of_the_unet():
    pipe = SONAXLPipeline(**components(PNDMScheduler))
    assert type(pipe.scheduler) is DDIMScheduler
    assert pipe.image_size == 32
