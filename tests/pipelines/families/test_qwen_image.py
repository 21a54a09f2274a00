"""SONA with Qwen-Image, on random models of its layout."""

import json

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    QwenImageImg2ImgPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from flow_calls import (
    OFF,
    generators,
    hold_against_the_plain_loop,
    hold_alone_as_in_a_batch,
    hold_half,
    latents_of,
    order_of_use,
    outliers,
)
from in_blocks import assert_same_in_blocks
from peft import LoraConfig, get_peft_model_state_dict
from plain_call import in_fresh_process
from qwen_parts import LANGUAGE_MODEL, qwen_tokenizer
from tiny_pipelines import WIDTH
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from sona_pipeline.pipelines.families.qwen_image import SONAQwenImagePipeline
from sona_pipeline.pipelines.packing import packed, unpacked

SCHEDULER = {
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 0.9,
    "max_image_seq_len": 8192,
    "shift_terminal": 0.02,
}
TRANSFORMER = {
    "in_channels": 16,
    "out_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": WIDTH,
    "axes_dims_rope": (8, 4, 4),
}
VAE = {
    "base_dim": 4,
    "z_dim": 4,
    "dim_mult": [1, 2, 4],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True],
    "latents_mean": [0.5, -0.7, 0.1, 0.9],
    "latents_std": [2.8, 1.4, 2.3, 0.6],
}
VISION = {
    "depth": 1,
    "hidden_size": WIDTH,
    "intermediate_size": WIDTH,
    "num_heads": 2,
    "out_hidden_size": WIDTH,
    "fullatt_block_indexes": [0],
}
CPU = torch.device("cpu")
TOLERANCE = 1e-4
"""Norms of both models, and time, are in float32; guidance makes that up to a hundred times as much."""


def parts(dtype=torch.float64, vae=None, **transformer):
    """Components of a random pipeline, the same at each call: the VAE divides sides by 4."""
    tokenizer = qwen_tokenizer()
    rope = {"rope_type": "default", "type": "default", "rope_theta": 1e6, "mrope_section": [2, 1, 1]}
    language = LANGUAGE_MODEL | {"vocab_size": len(tokenizer), "rope_parameters": rope}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        autoencoder = AutoencoderKLQwenImage(**VAE | (vae or {}))
        config = Qwen2_5_VLConfig(text_config=language, vision_config=VISION, initializer_range=0.5)
        text_encoder = Qwen2_5_VLForConditionalGeneration(config)
        qwen_image = QwenImageTransformer2DModel(**TRANSFORMER | transformer)
    models = {"vae": autoencoder, "text_encoder": text_encoder, "transformer": qwen_image}
    return {
        **{name: model.to(dtype).eval().requires_grad_(False) for name, model in models.items()},
        "tokenizer": tokenizer,
        "scheduler": FlowMatchEulerDiscreteScheduler(**SCHEDULER),
    }


def pipeline(**options):
    pipe = SONAQwenImagePipeline(**parts(**options))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sigmas_of(steps, tokens):
    """Even steps, shifted for a number of tokens (0.5 at 256, 0.9 at 8192), and stretched to end with 0.02."""
    shift = np.exp(0.5 + (tokens - 256) / (8192 - 256) * 0.4)
    shifted = shift / (shift + 1 / np.linspace(1, 1 / steps, steps) - 1)
    return torch.tensor([*(1 - (1 - shifted) * (1 - 0.02) / (1 - shifted[-1])), 0.0])


def one_row(pipe):
    """What the transformer predicts for one row, with tokens and embeddings as diffusers makes them."""
    peer = QwenImageImg2ImgPipeline(**pipe.components)

    def predict(latents, t, text):
        channels, height, width = latents.shape[1:]
        embeds, mask = peer.encode_prompt(text or " ")
        assert mask is None
        predicted = pipe.transformer(
            hidden_states=peer._pack_latents(latents, 1, channels, height, width),
            timestep=t.view(1) / 1000,
            encoder_hidden_states=embeds,
            img_shapes=[[(1, height // 2, width // 2)]],
        ).sample
        side = pipe.vae_scale_factor
        return peer._unpack_latents(predicted, height * side, width * side, side)[:, :, 0]

    return predict


def test_blocks_make_the_same_outliers():
    assert_same_in_blocks(pipeline())


def test_outliers_are_those_of_the_plain_loop():
    pipe = pipeline()
    hold_against_the_plain_loop(pipe, one_row(pipe), sigmas_of(6, 6), TOLERANCE)


def test_an_image_is_alone_as_in_a_batch():
    hold_alone_as_in_a_batch(pipeline(), TOLERANCE)


def test_without_terms_it_is_img2img_of_diffusers():
    pipe = pipeline(dtype=torch.float32)
    peer = QwenImageImg2ImgPipeline(**pipe.components)
    peer.set_progress_bar_config(disable=True)
    images = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(3))
    for form in ("latent", "pt"):
        given = {"image": images, "num_inference_steps": 6, "strength": 0.5, "output_type": form}
        found = pipe(id_prompt="a cat", ood_prompt="a dog", generator=generators(2), **given, **OFF).images
        wanted = peer([" ", " "], height=16, width=24, true_cfg_scale=1.0, generator=generators(2), **given).images
        wanted = peer._unpack_latents(wanted, 16, 24, 4)[:, :, 0] if form == "latent" else wanted
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_texts_are_encoded_as_by_diffusers():
    """The template, without its first 34 tokens; what is longer than 512 tokens is cut."""
    pipe = pipeline()
    peer = QwenImageImg2ImgPipeline(**pipe.components)
    texts = [" ", "a cat", "a red car on a wide road", "long " * 120]
    found = pipe.encode_texts(texts, CPU)
    wanted, mask = peer.encode_prompt(texts, max_sequence_length=512)
    assert found["prompt_embeds"].shape == wanted.shape == (4, 512, WIDTH)
    assert torch.equal(found["prompt_embeds_mask"], mask)
    torch.testing.assert_close(found["prompt_embeds"], wanted, atol=1e-5, rtol=0)


def test_packing_is_that_of_diffusers():
    latents = torch.randn(2, 4, 6, 10)
    tokens = QwenImageImg2ImgPipeline._pack_latents(latents, 2, 4, 6, 10)
    assert torch.equal(packed(latents), tokens)
    assert torch.equal(unpacked(tokens, 6, 10), latents)


def test_long_prompts_are_cut_with_a_warning(caplog):
    pipe = pipeline()
    outliers(pipe, latents_of(pipe), id_prompt="long " * 120, stop_step=1)
    assert "longer than 512 tokens" in caplog.text


def test_embeddings_take_the_place_of_prompts_and_text_encoder():
    pipe = pipeline()
    latents = latents_of(pipe)
    wanted = outliers(pipe, latents, id_prompt="a cat", ood_prompt="a red car on a wide road")
    embeds = [pipe.encode_texts([text], CPU) for text in ("", "a cat", "a red car on a wide road")]
    bare = SONAQwenImagePipeline(**pipe.components | {"text_encoder": None, "tokenizer": None})
    bare.set_progress_bar_config(disable=True)
    names = ["uncond_prompt_embeds", "id_prompt_embeds", "ood_prompt_embeds"]
    found = outliers(bare, latents, id_prompt=None, ood_prompt=None, **dict(zip(names, embeds)))
    torch.testing.assert_close(found, wanted, atol=TOLERANCE, rtol=0)
    with pytest.raises(ValueError, match="no text encoder: load one, or give `uncond_prompt_embeds` and `ood_prompt"):
        outliers(bare, latents, id_prompt=None, id_prompt_embeds=embeds[1])


def test_a_half_transformer_keeps_latents_in_float32():
    hold_half(pipeline(dtype=torch.float32))


def test_it_is_saved_with_its_code(tmp_path):
    pipe = pipeline(dtype=torch.float32)
    pipe.save_pretrained(tmp_path)
    found = in_fresh_process(tmp_path, 16)
    image = torch.linspace(0, 1, 3 * 16**2).view(1, 3, 16, 16)
    given = {"stop_step": 2, "num_inference_steps": 4, "output_type": "pt"}
    made = pipe(image, "a cat", "a dog", generator=torch.Generator().manual_seed(0), **given).images
    torch.testing.assert_close(found, made.flatten()[:50], atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", [QwenImagePipeline, QwenImageImg2ImgPipeline])
def test_checkpoints_of_diffusers_are_loaded_by_the_file(kind, tmp_path):
    components = parts(dtype=torch.float32)
    kind(**components).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == kind.__name__
    file = str(SONAQwenImagePipeline.standalone_file())
    loaded = DiffusionPipeline.from_pretrained(tmp_path, custom_pipeline=file, trust_remote_code=True)
    assert type(loaded).__name__ == "SONAQwenImagePipeline" and not isinstance(loaded, SONAQwenImagePipeline)
    loaded.set_progress_bar_config(disable=True)
    own = pipeline(dtype=torch.float32)
    made = [outliers(pipe, latents_of(own), guidance_scale=1.0) for pipe in (loaded, own)]  # float32 turns masks over
    torch.testing.assert_close(*made, atol=1e-3, rtol=0)
    turned = SONAQwenImagePipeline.from_pipe(kind(**components))
    assert turned.components.keys() == components.keys()
    assert all(turned.components[name] is part for name, part in components.items())


def test_the_parts_are_offloaded_in_the_order_of_last_use():
    pipe = pipeline(dtype=torch.float32)
    assert order_of_use(pipe, torch.rand(1, 3, 16, 16)) == pipe.model_cpu_offload_seq.split("->")


def test_adapters_change_outliers_by_their_scale(tmp_path):
    pipe = pipeline(dtype=torch.float32)
    plain = outliers(pipe, latents_of(pipe))
    other = parts(dtype=torch.float32)["transformer"]
    other.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    SONAQwenImagePipeline.save_lora_weights(tmp_path, transformer_lora_layers=get_peft_model_state_dict(other))
    pipe.load_lora_weights(tmp_path)
    assert (outliers(pipe, latents_of(pipe)) - plain).abs().max() > 1e-3
    unscaled = outliers(pipe, latents_of(pipe), cross_attention_kwargs={"scale": 0.0})
    torch.testing.assert_close(unscaled, plain, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance_embeds": True}, "distilled to take the guidance as a number, .* as guidance_embeds says"),
        ({"zero_cond_t": True}, "made to edit images .Qwen-Image-Edit., as zero_cond_t says"),
        ({"use_additional_t_cond": True}, "images in layers .Qwen-Image-Layered., as use_additional_t_cond says"),
        ({"use_layer3d_rope": True}, "images in layers .Qwen-Image-Layered., as use_layer3d_rope says"),
        ({"in_channels": 32}, "takes 32 channels for 2 x 2 latents and gives 16"),
        ({"vae": {"input_channels": 4}}, "takes images of 4 channels, as in Qwen-Image-Layered"),
        ({"vae": {"z_dim": 8}}, "makes latents of 8 channels and the transformer takes 16 for 2 x 2"),
        ({"joint_attention_dim": 8}, "gives embeddings of width 16 and the transformer takes 8"),
    ],
)
def test_other_checkpoints_are_refused(options, message):
    with pytest.raises(ValueError, match=message) as error:
        pipeline(**options)
    assert "\n" not in str(error.value)


def test_diffusers_cannot_give_the_guidance_as_a_number():
    """Why transformers with guidance_embeds are refused; if this fails, they may be taken."""
    transformer = QwenImageTransformer2DModel(**TRANSFORMER, guidance_embeds=True)
    with pytest.raises(TypeError, match="positional arguments"):
        transformer(
            torch.zeros(1, 4, 16), torch.zeros(1, 3, WIDTH), None, torch.ones(1), [[(1, 2, 2)]], guidance=torch.ones(1)
        )


def test_parts_of_other_families_are_refused(tiny_components):
    for name, part, message in (
        ("transformer", tiny_components["unet"], "UNet2DConditionModel without 'joint_attention_dim'"),
        ("vae", AutoencoderKL(norm_num_groups=1, block_out_channels=[1]), "is a AutoencoderKL without 'z_dim'"),
        ("scheduler", tiny_components["scheduler"], "DDIMScheduler` has no .* is not made for flow models"),
    ):
        with pytest.raises(ValueError, match=message):
            SONAQwenImagePipeline(**parts() | {name: part})


def test_calls_it_cannot_take_are_refused():
    pipe = pipeline()
    with pytest.raises(ValueError, match="`clip_skip` is 1, but Qwen-Image"):
        outliers(pipe, latents_of(pipe), clip_skip=1)
    with pytest.raises(ValueError, match="multiples of 8"):
        pipe(torch.rand(1, 3, 12, 16), "a cat", "a dog")
    with pytest.raises(ValueError, match="Latents are 3 x 4, but the model takes multiples of 2"):
        outliers(pipe, latents_of(pipe, width=3))
    with pytest.raises(ValueError, match="has \\['prompt_embeds'\\], but"):
        outliers(pipe, latents_of(pipe), id_prompt=None, id_prompt_embeds=torch.zeros(1, 512, WIDTH))
    assert pipe.image_size == 512  # 1024 with the eight pixels of a real one
