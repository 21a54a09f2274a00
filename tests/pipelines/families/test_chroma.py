"""SONA with Chroma, on random models of its layout."""

import json

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ChromaImg2ImgPipeline,
    ChromaPipeline,
    ChromaTransformer2DModel,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
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
from tiny_pipelines import WIDTH
from tiny_text_encoders import t5

from sona_pipeline.pipelines.families.chroma import SONAChromaPipeline

TRANSFORMER = {
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": WIDTH,
    "axes_dims_rope": (4, 6, 6),
    "approximator_num_channels": 8,
    "approximator_hidden_dim": 16,
    "approximator_layers": 2,
}
CPU = torch.device("cpu")
TEXTS = ["", "a cat", "a red car on a wide road", "long " * 120]
TOLERANCE = 1e-4
"""Norms of T5, and time, are in float32; guidance makes that up to a hundred times as much."""


def parts(dtype=torch.float64, vae_channels=4, **transformer):
    """Components of a random pipeline, the same at each call: the VAE divides sides by 4."""
    text_encoder, tokenizer = t5(WIDTH)
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
        chroma = ChromaTransformer2DModel(**TRANSFORMER | transformer)
    models = {"vae": vae, "text_encoder": text_encoder, "transformer": chroma}
    return {
        **{name: model.to(dtype).eval().requires_grad_(False) for name, model in models.items()},
        "tokenizer": tokenizer,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    }


def pipeline(**options):
    pipe = SONAChromaPipeline(**parts(**options))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sigmas_of(steps, shift=3.0):
    """Even steps, shifted, as exact as the scheduler has them."""
    even = np.linspace(1, 1 / steps, steps)
    return torch.tensor([*(shift * even / (1 + (shift - 1) * even)), 0.0], dtype=torch.float32).double()


def with_image(mask, tokens):
    """The mask `[B, L]` of a prompt, true or false, with tokens of an image, all of which are seen."""
    return torch.cat([mask.bool(), torch.ones(len(mask), tokens, dtype=torch.bool)], dim=1)


def one_row(pipe):
    """What the transformer predicts for one row, with all 512 tokens and their mask as diffusers makes them."""
    peer = ChromaImg2ImgPipeline(**pipe.components)

    def predict(latents, t, text):
        channels, height, width = latents.shape[1:]
        embeds, text_ids, mask, *_ = peer.encode_prompt(text, do_classifier_free_guidance=False)
        tokens = peer._pack_latents(latents, 1, channels, height, width)
        predicted = pipe.transformer(
            hidden_states=tokens,
            timestep=t.view(1) / 1000,
            encoder_hidden_states=embeds,
            txt_ids=text_ids,
            img_ids=peer._prepare_latent_image_ids(height // 2, width // 2, CPU, torch.float64),
            attention_mask=with_image(mask, tokens.shape[1]),
        ).sample
        side = pipe.vae_scale_factor
        return peer._unpack_latents(predicted, height * side, width * side, side)

    return predict


def test_outliers_are_those_of_the_plain_loop():
    pipe = pipeline()
    hold_against_the_plain_loop(pipe, one_row(pipe), sigmas_of(6), TOLERANCE)


def test_an_image_is_alone_as_in_a_batch():
    hold_alone_as_in_a_batch(pipeline(), TOLERANCE)


def test_blocks_make_the_same_outliers():
    assert_same_in_blocks(pipeline())


def test_texts_are_encoded_as_by_diffusers():
    """All of 512 tokens, and which of them are seen; what is longer is cut."""
    pipe = pipeline()
    found = pipe.encode_texts(TEXTS, CPU)
    peer = ChromaImg2ImgPipeline(**pipe.components)
    embeds, _, mask, *_ = peer.encode_prompt(TEXTS, do_classifier_free_guidance=False)
    torch.testing.assert_close(found["prompt_embeds"], embeds, atol=1e-6, rtol=0)
    assert torch.equal(found["prompt_attention_mask"], mask.bool())
    tokens = [len(ids) for ids in pipe.token_ids(TEXTS)]
    assert found["prompt_attention_mask"].sum(dim=1).tolist() == [*(own + 1 for own in tokens[:3]), 512]


def test_the_prompt_and_one_token_of_its_padding_are_seen():
    pipe = pipeline()
    latents = latents_of(pipe, 1)
    conditions = {name: value[1:2] for name, value in pipe.encode_texts(TEXTS, CPU).items()}
    seen = int(conditions["prompt_attention_mask"].sum())

    def predicted(place):
        embeds = conditions["prompt_embeds"].clone()
        embeds[:, place] += 1
        return pipe.denoise(latents, torch.tensor(500.0), conditions | {"prompt_embeds": embeds}, None)

    plain = predicted(slice(0))
    torch.testing.assert_close(predicted(slice(seen, None)), plain, atol=1e-12, rtol=0)
    assert all((predicted(place) - plain).abs().max() > 1e-6 for place in (0, seen - 1))


@pytest.mark.parametrize("kind", [ChromaPipeline, ChromaImg2ImgPipeline])
def test_diffusers_sees_all_of_the_padding(kind):
    """Why the mask is boolean here and not as in diffusers' pipelines; if this fails, it is the same."""
    pipe = pipeline()
    peer = kind(**pipe.components)
    embeds, text_ids, mask, *_ = peer.encode_prompt("a cat", do_classifier_free_guidance=False)
    tokens = torch.zeros(1, 6, 16, dtype=torch.float64)
    given = {
        "hidden_states": tokens,
        "timestep": torch.full((1,), 0.5),
        "txt_ids": text_ids,
        "img_ids": ChromaImg2ImgPipeline._prepare_latent_image_ids(2, 3, CPU, torch.float64),
    }
    changed = torch.where(mask[..., None].bool(), embeds, embeds + 1)
    theirs = peer._prepare_attention_mask(1, 6, tokens.dtype, mask)
    for own, is_seen in ((theirs, True), (theirs.bool(), False)):
        first, second = (
            pipe.transformer(encoder_hidden_states=one, attention_mask=own, **given).sample for one in (embeds, changed)
        )
        assert bool((first - second).abs().max() > 1e-6) is is_seen


def test_without_terms_it_is_img2img_of_diffusers_with_a_boolean_mask(monkeypatch):
    pipe = pipeline(dtype=torch.float32)
    peer = ChromaImg2ImgPipeline(**pipe.components)
    peer.set_progress_bar_config(disable=True)
    monkeypatch.setattr(
        peer,
        "_prepare_attention_mask",
        lambda batch_size, sequence_length, dtype, attention_mask: (
            None if attention_mask is None else with_image(attention_mask, sequence_length)
        ),
    )
    images = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(3))
    for form in ("latent", "pt"):
        given = {"image": images, "num_inference_steps": 6, "strength": 0.5, "output_type": form}
        found = pipe(id_prompt="a cat", ood_prompt="a dog", generator=generators(2), **given, **OFF).images
        own = {"guidance_scale": 1.0, "height": 16, "width": 24}
        wanted = peer(["", ""], generator=generators(2), **own, **given).images
        wanted = peer._unpack_latents(wanted, 16, 24, 4) if form == "latent" else wanted
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_embeddings_take_the_place_of_prompts_and_text_encoder():
    """Those of this pipeline, and those of diffusers', whose masks are numbers."""
    pipe = pipeline()
    latents, texts = latents_of(pipe), ("", "a cat", "a red car on a wide road")
    wanted = outliers(pipe, latents, id_prompt=texts[1], ood_prompt=texts[2])
    peer = ChromaPipeline(**pipe.components)
    bare = SONAChromaPipeline(**pipe.components | {"text_encoder": None, "tokenizer": None})
    bare.set_progress_bar_config(disable=True)
    names = ["uncond_prompt_embeds", "id_prompt_embeds", "ood_prompt_embeds"]

    def of_diffusers(text):
        embeds, _, mask, *_ = peer.encode_prompt(text, do_classifier_free_guidance=False)
        return {"prompt_embeds": embeds, "prompt_attention_mask": mask}

    for encode in (lambda text: pipe.encode_texts([text], CPU), of_diffusers):
        embeds = dict(zip(names, map(encode, texts)))
        found = outliers(bare, latents, id_prompt=None, ood_prompt=None, **embeds)
        torch.testing.assert_close(found, wanted, atol=TOLERANCE, rtol=0)
    with pytest.raises(ValueError, match="`text_encoder` is None, but prompts need it"):
        outliers(bare, latents)


def test_long_prompts_are_cut_with_a_warning(caplog):
    pipe = pipeline()
    outliers(pipe, latents_of(pipe), id_prompt=TEXTS[-1], stop_step=1)
    assert "longer than 512 tokens" in caplog.text


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


@pytest.mark.parametrize("kind", [ChromaPipeline, ChromaImg2ImgPipeline])
def test_checkpoints_of_diffusers_are_loaded_by_the_file(kind, tmp_path):
    components = parts(dtype=torch.float32)
    kind(**components).save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == kind.__name__
    file = str(SONAChromaPipeline.standalone_file())
    loaded = DiffusionPipeline.from_pretrained(tmp_path, custom_pipeline=file, trust_remote_code=True)
    assert type(loaded).__name__ == "SONAChromaPipeline" and not isinstance(loaded, SONAChromaPipeline)
    loaded.set_progress_bar_config(disable=True)
    own = pipeline(dtype=torch.float32)
    made = [outliers(pipe, latents_of(own), guidance_scale=1.0) for pipe in (loaded, own)]  # float32 turns masks over
    torch.testing.assert_close(*made, atol=1e-3, rtol=0)
    turned = SONAChromaPipeline.from_pipe(kind(**components))
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
    SONAChromaPipeline.save_lora_weights(tmp_path, transformer_lora_layers=get_peft_model_state_dict(other))
    pipe.load_lora_weights(tmp_path)
    assert (outliers(pipe, latents_of(pipe)) - plain).abs().max() > 1e-3
    unscaled = outliers(pipe, latents_of(pipe), cross_attention_kwargs={"scale": 0.0})
    torch.testing.assert_close(unscaled, plain, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_channels": 32, "out_channels": 16}, "takes 32 channels and gives 16: .*take Chroma"),
        ({"vae_channels": 8}, "makes latents of 8 channels and the transformer takes 16"),
        ({"joint_attention_dim": 8}, "T5EncoderModel gives embeddings of width 16 and the transformer takes 8"),
    ],
)
def test_other_checkpoints_are_refused(options, message):
    with pytest.raises(ValueError, match=message) as error:
        pipeline(**options)
    assert "\n" not in str(error.value)


def test_parts_of_other_families_are_refused(tiny_components):
    flux = FluxTransformer2DModel(in_channels=16, num_layers=0, num_single_layers=0, joint_attention_dim=WIDTH)
    for name, part, message in (
        ("transformer", tiny_components["unet"], "UNet2DConditionModel without 'approximator_layers': take Chroma"),
        ("transformer", flux, "FluxTransformer2DModel without 'approximator_layers': take Chroma"),
        ("scheduler", tiny_components["scheduler"], "DDIMScheduler` has no .* is not made for flow models"),
    ):
        with pytest.raises(ValueError, match=message):
            SONAChromaPipeline(**parts() | {name: part})


def test_calls_it_cannot_take_are_refused():
    pipe = pipeline()
    with pytest.raises(ValueError, match="`clip_skip` is 1, but Chroma has fixed layers"):
        outliers(pipe, latents_of(pipe), clip_skip=1)
    with pytest.raises(ValueError, match="multiples of 8"):
        pipe(torch.rand(1, 3, 12, 16), "a cat", "a dog")
    with pytest.raises(ValueError, match="Latents are 3 x 4, but the model takes multiples of 2"):
        outliers(pipe, latents_of(pipe, width=3))
    with pytest.raises(ValueError, match="has \\['prompt_embeds'\\], but"):
        outliers(pipe, latents_of(pipe), id_prompt=None, id_prompt_embeds=torch.zeros(1, 512, WIDTH))
    assert pipe.image_size == 512  # 1024 with the eight pixels of a real one
