"""SONA with Z-Image, on random models of its layout."""

import json

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    ZImageImg2ImgPipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
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
from transformers import Qwen3Config, Qwen3Model

from sona_pipeline.pipelines.families.z_image import SONAZImagePipeline

TRANSFORMER = {
    "in_channels": 4,
    "dim": 32,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 2,
    "cap_feat_dim": WIDTH,
    "axes_dims": [8, 4, 4],
    "axes_lens": [1024, 64, 64],
}
CPU = torch.device("cpu")
TOLERANCE = 1e-4
"""Norms of both models, and time, are in float32; guidance makes that up to a hundred times as much."""


def parts(dtype=torch.float64, shift=6.0, vae_channels=4, **transformer):
    """Components of a random pipeline, the same at each call: the VAE divides sides by 4."""
    tokenizer = qwen_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 3,
            up_block_types=["UpDecoderBlock2D"] * 3,
            block_out_channels=[4, 4, 8],
            latent_channels=vae_channels,
            norm_num_groups=2,
            scaling_factor=0.3611,
            shift_factor=0.1159,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
        text_encoder = Qwen3Model(Qwen3Config(vocab_size=len(tokenizer), head_dim=8, **LANGUAGE_MODEL))
        z_image = ZImageTransformer2DModel(**TRANSFORMER | transformer)
        for name, parameter in z_image.named_parameters():
            if "pad_token" in name:
                torch.nn.init.normal_(parameter)
    models = {"vae": vae, "text_encoder": text_encoder, "transformer": z_image}
    return {
        **{name: model.to(dtype).eval().requires_grad_(False) for name, model in models.items()},
        "tokenizer": tokenizer,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=shift),
    }


def pipeline(**options):
    pipe = SONAZImagePipeline(**parts(**options))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sigmas_of(steps, shift=6.0):
    """Even steps, shifted, as exact as the scheduler has them."""
    even = np.linspace(1, 1 / steps, steps)
    return torch.tensor([*(shift * even / (1 + (shift - 1) * even)), 0.0], dtype=torch.float32).double()


def one_row(pipe):
    """What the transformer predicts for one row, with embeddings as diffusers makes them."""
    peer = ZImageImg2ImgPipeline(**pipe.components)

    def predict(latents, t, text):
        captions, _ = peer.encode_prompt(text, "cpu", do_classifier_free_guidance=False)
        time = (1000 - t.float().view(1)) / 1000
        return -pipe.transformer([latents[0, :, None]], time, captions).sample[0][None, :, 0]

    return predict


def test_blocks_make_the_same_outliers():
    assert_same_in_blocks(pipeline())


def test_outliers_are_those_of_the_plain_loop():
    pipe = pipeline()
    hold_against_the_plain_loop(pipe, one_row(pipe), sigmas_of(6), TOLERANCE)


def test_an_image_is_alone_as_in_a_batch():
    hold_alone_as_in_a_batch(pipeline(), TOLERANCE)


def test_rows_of_any_lengths_are_as_each_alone():
    """Captions of 1 to 100 tokens, which the transformer pads to different multiples of 32."""
    transformer, random = pipeline().transformer, torch.Generator().manual_seed(5)
    images = [torch.randn(4, 1, 4, 6, generator=random, dtype=torch.float64) for _ in range(4)]
    captions = [torch.randn(n, WIDTH, generator=random, dtype=torch.float64) for n in (1, 32, 33, 100)]
    times = torch.full((4,), 0.3)
    together = transformer(images, times, captions).sample
    for k in range(4):
        alone, other = (transformer(images[k : k + 1], times[:1], [captions[n]]).sample[0] for n in (k, k - 1))
        torch.testing.assert_close(together[k], alone, atol=1e-6, rtol=0)
        assert (other - alone).abs().max() > 0.01
        assert (
            not torch.allclose(together[k], transformer(images[k : k + 1], times[:1], captions[:1]).sample[0]) or not k
        )


def test_without_terms_it_is_img2img_of_diffusers():
    pipe = pipeline(dtype=torch.float32)
    peer = ZImageImg2ImgPipeline(**pipe.components)
    peer.set_progress_bar_config(disable=True)
    images = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(3))
    for form in ("latent", "pt"):
        given = {"image": images, "num_inference_steps": 6, "strength": 0.5, "output_type": form}
        found = pipe(id_prompt="a cat", ood_prompt="a dog", generator=generators(2), **given, **OFF).images
        wanted = peer(["", ""], generator=generators(2), guidance_scale=0.0, **given).images
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_texts_are_encoded_as_by_diffusers():
    """The chat, the last but one layer, a length of its own for each; what is longer than 512 tokens is cut."""
    pipe = pipeline()
    peer = ZImageImg2ImgPipeline(**pipe.components)
    texts = ["", "a cat", "a red car on a wide road", "long " * 120]
    found = pipe.encode_texts(texts, CPU)
    wanted, _ = peer.encode_prompt(list(texts), "cpu", do_classifier_free_guidance=False)
    assert found["prompt_embeds"].shape == (4, 512, WIDTH)
    assert found["prompt_embeds_mask"].sum(dim=1).tolist() == [len(states) for states in wanted]
    for states, own in zip(found["prompt_embeds"], wanted, strict=True):
        torch.testing.assert_close(states[: len(own)], own, atol=1e-5, rtol=0)
        assert not states[len(own) :].any()


def test_long_prompts_are_cut_with_a_warning(caplog):
    pipe = pipeline()
    outliers(pipe, latents_of(pipe), id_prompt="long " * 120, stop_step=1)
    assert "longer than 512 tokens" in caplog.text


def test_embeddings_take_the_place_of_prompts_and_text_encoder():
    pipe = pipeline()
    latents = latents_of(pipe)
    wanted = outliers(pipe, latents, id_prompt="a cat", ood_prompt="a red car on a wide road")
    embeds = [pipe.encode_texts([text], CPU) for text in ("", "a cat", "a red car on a wide road")]
    bare = SONAZImagePipeline(**pipe.components | {"text_encoder": None, "tokenizer": None})
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


@pytest.mark.parametrize("kind", [ZImagePipeline, ZImageImg2ImgPipeline])
def test_checkpoints_of_diffusers_are_loaded_by_the_file(kind, tmp_path):
    components = parts(dtype=torch.float32)
    kind(**components).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == kind.__name__
    file = str(SONAZImagePipeline.standalone_file())
    loaded = DiffusionPipeline.from_pretrained(tmp_path, custom_pipeline=file, trust_remote_code=True)
    assert type(loaded).__name__ == "SONAZImagePipeline" and not isinstance(loaded, SONAZImagePipeline)
    loaded.set_progress_bar_config(disable=True)
    own = pipeline(dtype=torch.float32)
    made = [outliers(pipe, latents_of(own), guidance_scale=1.0) for pipe in (loaded, own)]  # float32 turns masks over
    torch.testing.assert_close(*made, atol=1e-3, rtol=0)
    turned = SONAZImagePipeline.from_pipe(kind(**components))
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
    SONAZImagePipeline.save_lora_weights(tmp_path, transformer_lora_layers=get_peft_model_state_dict(other))
    pipe.load_lora_weights(tmp_path)
    assert (outliers(pipe, latents_of(pipe)) - plain).abs().max() > 1e-3
    unscaled = outliers(pipe, latents_of(pipe), cross_attention_kwargs={"scale": 0.0})
    torch.testing.assert_close(unscaled, plain, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shift": 3.0}, "shift 3.0 of Z-Image-Turbo, which is distilled"),
        ({"siglip_feat_dim": 8}, "features of images to edit, too .siglip_feat_dim 8, as in Z-Image-Omni"),
        ({"vae_channels": 8}, "makes latents of 8 channels and the transformer takes 4"),
        ({"cap_feat_dim": 8}, "gives embeddings of width 16 and the transformer takes 8"),
    ],
)
def test_other_checkpoints_are_refused(options, message):
    with pytest.raises(ValueError, match=message) as error:
        pipeline(**options)
    assert "\n" not in str(error.value)


def test_parts_of_other_families_are_refused(tiny_components):
    for name, message in (
        ("unet", "UNet2DConditionModel without 'cap_feat_dim'"),
        ("scheduler", "DDIMScheduler` has no prediction_type 'flow_prediction', .* is not made for flow models"),
    ):
        own = "transformer" if name == "unet" else name
        with pytest.raises(ValueError, match=message):
            SONAZImagePipeline(**parts() | {own: tiny_components[name]})


def test_calls_it_cannot_take_are_refused():
    pipe = pipeline()
    with pytest.raises(ValueError, match="`clip_skip` is 1, but Z-Image"):
        outliers(pipe, latents_of(pipe), clip_skip=1)
    with pytest.raises(ValueError, match="multiples of 8"):
        pipe(torch.rand(1, 3, 12, 16), "a cat", "a dog")
    with pytest.raises(ValueError, match="Latents are 3 x 4, but the model takes multiples of 2"):
        outliers(pipe, latents_of(pipe, width=3))
    with pytest.raises(ValueError, match="has \\['prompt_embeds'\\], but"):
        outliers(pipe, latents_of(pipe), id_prompt=None, id_prompt_embeds=torch.zeros(1, 512, WIDTH))
    assert pipe.image_size == 512  # 1024 with the eight pixels of a real one
