"""SONA with FLUX.1, on random models of its layout."""

import json
import string

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxImg2ImgPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
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
from tiny_pipelines import LENGTH, WIDTH, byte_tokenizer
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel, T5TokenizerFast

from sona_pipeline.pipelines.families.flux import SONAFluxPipeline

SCHEDULER = {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
TRANSFORMER = {
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": WIDTH,
    "pooled_projection_dim": WIDTH,
    "guidance_embeds": True,
    "axes_dims_rope": (4, 6, 6),
}


def t5_tokenizer():
    """A T5 tokenizer of letters."""
    words = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        ("▁", -1.0),
        *((one, -2.0) for one in string.ascii_lowercase),
    ]
    return T5TokenizerFast(vocab=words, extra_ids=0, model_max_length=12)


def parts(dtype=torch.float64, scheduler=SCHEDULER, vae_channels=4, **transformer):
    """Components of a random pipeline, the same at each call."""
    tokenizer, tokenizer_2 = byte_tokenizer(), t5_tokenizer()
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
        clip = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=WIDTH,
                intermediate_size=WIDTH,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=LENGTH,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        t5 = T5EncoderModel(
            T5Config(vocab_size=len(tokenizer_2), d_model=WIDTH, d_kv=8, d_ff=WIDTH, num_layers=1, num_heads=2)
        )
        flux = FluxTransformer2DModel(**TRANSFORMER | transformer)
    models = {"vae": vae, "text_encoder": clip, "text_encoder_2": t5, "transformer": flux}
    return {
        **{name: model.to(dtype).eval().requires_grad_(False) for name, model in models.items()},
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer_2,
        "scheduler": FlowMatchEulerDiscreteScheduler(**scheduler),
    }


def pipeline(**options):
    pipe = SONAFluxPipeline(**parts(**options))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sigmas_of(steps, tokens):
    """Even steps, shifted for a number of tokens: 0.5 at 256 and 1.15 at 4096."""
    shift = np.exp(0.5 + (tokens - 256) / (4096 - 256) * 0.65)
    even = np.linspace(1, 1 / steps, steps)
    return torch.tensor([*(shift / (shift + 1 / even - 1)), 0.0])


def one_row(pipe):
    """What the transformer predicts for one row, with tokens, positions and embeddings as diffusers makes them."""
    peer = FluxImg2ImgPipeline(**pipe.components)

    def predict(latents, t, text):
        channels, height, width = latents.shape[1:]
        embeds, pooled, text_ids = peer.encode_prompt(text, max_sequence_length=12)
        predicted = pipe.transformer(
            hidden_states=peer._pack_latents(latents, 1, channels, height, width),
            timestep=torch.full((1,), float(t) / 1000),
            guidance=torch.ones(1) if pipe.transformer.config.guidance_embeds else None,
            pooled_projections=pooled,
            encoder_hidden_states=embeds,
            txt_ids=text_ids,
            img_ids=peer._prepare_latent_image_ids(1, height // 2, width // 2, "cpu", torch.float64),
        ).sample
        side = pipe.vae_scale_factor
        return peer._unpack_latents(predicted, height * side, width * side, side)

    return predict


@pytest.mark.parametrize("guidance_embeds", [True, False])
def test_outliers_are_those_of_the_plain_loop(guidance_embeds):
    pipe = pipeline(guidance_embeds=guidance_embeds)
    hold_against_the_plain_loop(pipe, one_row(pipe), sigmas_of(6, 6))


def test_an_image_is_alone_as_in_a_batch():
    hold_alone_as_in_a_batch(pipeline())


def test_blocks_make_the_same_outliers():
    assert_same_in_blocks(pipeline())


@pytest.mark.parametrize("distilled", [1.0, 3.5])
def test_without_terms_it_is_img2img_of_diffusers(distilled):
    pipe = pipeline(dtype=torch.float32)
    pipe.distilled_guidance = distilled
    peer = FluxImg2ImgPipeline(**pipe.components)
    peer.set_progress_bar_config(disable=True)
    images = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(3))
    for form in ("latent", "pt"):
        given = {"image": images, "num_inference_steps": 6, "strength": 0.5, "output_type": form}
        found = pipe(id_prompt="a cat", ood_prompt="a dog", generator=generators(2), **given, **OFF).images
        own = {"guidance_scale": distilled, "height": 16, "width": 24, "max_sequence_length": 12}
        wanted = peer(["", ""], generator=generators(2), **own, **given).images
        wanted = peer._unpack_latents(wanted, 16, 24, 4) if form == "latent" else wanted
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_distilled_guidance_is_told_to_the_model():
    pipe = pipeline()
    plain = outliers(pipe, latents_of(pipe))
    pipe.distilled_guidance = 3.5
    assert not torch.allclose(outliers(pipe, latents_of(pipe)), plain)


def test_own_sigmas_are_shifted_as_by_diffusers():
    pipe, seen = pipeline(), []
    outliers(
        pipe,
        latents_of(pipe),
        stop_step=2,
        sigmas=[1.0, 0.4],
        callback_on_step_end=lambda pipe, step, t, tensors: seen.append(float(t)),
    )
    shift = np.exp(0.5 + (6 - 256) / (4096 - 256) * 0.65)
    np.testing.assert_allclose(seen, [1000.0, 1000 * shift / (shift + 1 / 0.4 - 1)], rtol=1e-6)


def test_embeddings_take_the_place_of_prompts_and_text_encoders():
    pipe = pipeline()
    latents = latents_of(pipe)
    wanted = outliers(pipe, latents, id_prompt="a cat", ood_prompt="a dog")
    embeds = [pipe.encode_texts([text], torch.device("cpu")) for text in ("", "a cat", "a dog")]
    bare = SONAFluxPipeline(**pipe.components | dict.fromkeys(["text_encoder", "text_encoder_2", "tokenizer"]))
    bare.set_progress_bar_config(disable=True)
    names = ["uncond_prompt_embeds", "id_prompt_embeds", "ood_prompt_embeds"]
    found = outliers(bare, latents, id_prompt=None, ood_prompt=None, **dict(zip(names, embeds)))
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="`text_encoder` is None, but prompts need it"):
        outliers(bare, latents)


def test_long_prompts_are_cut_with_a_warning(caplog):
    pipe = pipeline()
    assert pipe.encode_texts(["a cat " * 9], torch.device("cpu"))["prompt_embeds"].shape == (1, 12, WIDTH)
    outliers(pipe, latents_of(pipe), id_prompt="a very long prompt", stop_step=1)
    assert "longer than 12 tokens" in caplog.text


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


@pytest.mark.parametrize("kind", [FluxPipeline, FluxImg2ImgPipeline])
def test_checkpoints_of_diffusers_are_loaded_by_the_file(kind, tmp_path):
    components = parts(dtype=torch.float32)
    kind(**components).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == kind.__name__
    file = str(SONAFluxPipeline.standalone_file())
    loaded = DiffusionPipeline.from_pretrained(tmp_path, custom_pipeline=file, trust_remote_code=True)
    assert type(loaded).__name__ == "SONAFluxPipeline" and not isinstance(loaded, SONAFluxPipeline)
    loaded.set_progress_bar_config(disable=True)
    own = pipeline(dtype=torch.float32)
    made = [outliers(pipe, latents_of(own), guidance_scale=1.0) for pipe in (loaded, own)]  # float32 turns masks over
    torch.testing.assert_close(*made, atol=1e-3, rtol=0)
    turned = SONAFluxPipeline.from_pipe(kind(**components))
    assert turned.transformer is components["transformer"]


def test_the_parts_are_offloaded_in_the_order_of_last_use():
    pipe = pipeline(dtype=torch.float32)
    assert order_of_use(pipe, torch.rand(1, 3, 16, 16)) == pipe.model_cpu_offload_seq.split("->")


def test_adapters_change_outliers_by_their_scale(tmp_path):
    pipe = pipeline(dtype=torch.float32)
    plain = outliers(pipe, latents_of(pipe))
    other = parts(dtype=torch.float32)["transformer"]
    other.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    SONAFluxPipeline.save_lora_weights(tmp_path, transformer_lora_layers=get_peft_model_state_dict(other))
    pipe.load_lora_weights(tmp_path)
    assert (outliers(pipe, latents_of(pipe)) - plain).abs().max() > 1e-3
    unscaled = outliers(pipe, latents_of(pipe), cross_attention_kwargs={"scale": 0.0})
    torch.testing.assert_close(unscaled, plain, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance_embeds": False, "scheduler": {"shift": 1.0}}, r"schnell\], which is distilled to four steps"),
        ({"in_channels": 96, "out_channels": 16}, r"takes 96 channels and gives 16: .*take FLUX.1 \[dev\]"),
        ({"in_channels": 32, "out_channels": 16}, r"takes 32 channels and gives 16"),
        ({"vae_channels": 8}, "makes latents of 8 channels and the transformer takes 16"),
        ({"joint_attention_dim": 8}, "T5EncoderModel gives embeddings of width 16 and the transformer takes 8"),
        ({"pooled_projection_dim": 8}, "CLIPTextModel gives embeddings of width 16 and the transformer takes 8"),
    ],
)
def test_other_checkpoints_are_refused(options, message):
    with pytest.raises(ValueError, match=message) as error:
        pipeline(**options)
    assert "\n" not in str(error.value)


def test_parts_of_other_families_are_refused(tiny_components):
    for name, message in (
        ("unet", "UNet2DConditionModel without 'guidance_embeds'"),
        ("scheduler", "DDIMScheduler` has no prediction_type 'flow_prediction', .* is not made for flow models"),
    ):
        own = "transformer" if name == "unet" else name
        with pytest.raises(ValueError, match=message):
            SONAFluxPipeline(**parts() | {own: tiny_components[name]})


def test_calls_it_cannot_take_are_refused():
    pipe = pipeline()
    with pytest.raises(ValueError, match="`clip_skip` is 1, but FLUX"):
        outliers(pipe, latents_of(pipe), clip_skip=1)
    with pytest.raises(ValueError, match="multiples of 8"):
        pipe(torch.rand(1, 3, 12, 16), "a cat", "a dog")
    with pytest.raises(ValueError, match="Latents are 3 x 4, but the model takes multiples of 2"):
        outliers(pipe, latents_of(pipe, width=3))
    with pytest.raises(ValueError, match="has \\['prompt_embeds'\\], but"):
        outliers(pipe, latents_of(pipe), id_prompt=None, id_prompt_embeds=torch.zeros(1, 12, WIDTH))
    assert pipe.image_size == 512  # 1024 with the eight pixels of a real one
