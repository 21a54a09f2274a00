"""SONA with FLUX.2 [klein] base, on random models of its layout."""

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKLFlux2,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)
from flow_calls import (
    IDS,
    OFF,
    OODS,
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
from tiny_pipelines import byte_tokenizer
from transformers import Qwen2TokenizerFast, Qwen3Config, Qwen3ForCausalLM

from sona_pipeline.pipelines.families.flux_2 import SONAFlux2Pipeline

LENGTH, WIDTH = 64, 16
SCHEDULER = {"shift": 3.0, "use_dynamic_shifting": True}
TRANSFORMER = {
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 3 * WIDTH,
    "timestep_guidance_channels": 32,
    "axes_dims_rope": (4, 4, 4, 4),
    "guidance_embeds": False,
}
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
)


def qwen_tokenizer():
    """A Qwen tokenizer of bytes with a chat template."""
    symbols = [one for one in byte_tokenizer().get_vocab() if len(one) == 1]
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return Qwen2TokenizerFast(
        vocab={symbol: k for k, symbol in enumerate([*sorted(symbols), *marks])},
        merges=[],
        model_max_length=LENGTH,
        additional_special_tokens=marks[1:],
        chat_template=CHAT,
    )


def parts(dtype=torch.float64, layers=28, vae_channels=4, scheduler=SCHEDULER, **transformer):
    """Components of a random pipeline, the same at each call."""
    tokenizer = qwen_tokenizer()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        vae = AutoencoderKLFlux2(
            down_block_types=["DownEncoderBlock2D"] * 3,
            up_block_types=["UpDecoderBlock2D"] * 3,
            block_out_channels=[4, 4, 8],
            latent_channels=vae_channels,
            norm_num_groups=2,
        )
        vae.bn.running_mean.normal_()
        vae.bn.running_var.uniform_(0.5, 2)
        qwen = Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=len(tokenizer),
                hidden_size=WIDTH,
                intermediate_size=WIDTH,
                num_hidden_layers=layers,
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=8,
            )
        )
        flux = Flux2Transformer2DModel(**TRANSFORMER | transformer)
        for name, parameter in flux.named_parameters():  # initial weights hardly listen to the prompt
            if name.endswith(("attn.to_out.0.weight", "attn.add_v_proj.weight", "attn.to_out.weight")):
                parameter.mul_(5)
    models = {"vae": vae, "text_encoder": qwen, "transformer": flux}
    return {
        **{name: model.to(dtype).eval().requires_grad_(False) for name, model in models.items()},
        "tokenizer": tokenizer,
        "scheduler": FlowMatchEulerDiscreteScheduler(**scheduler),
    }


def pipeline(**options):
    pipe = SONAFlux2Pipeline(**parts(**options))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def plain_pipeline(pipe):
    """The text-to-image pipeline of diffusers with the same parts."""
    peer = Flux2KleinPipeline(**pipe.components)
    peer.set_progress_bar_config(disable=True)
    return peer


def sigmas_of(steps, mu):
    """Even steps, shifted by exp(mu)."""
    even = np.linspace(1, 1 / steps, steps)
    return torch.tensor([*(np.exp(mu) / (np.exp(mu) + 1 / even - 1)), 0.0])


def one_row(pipe):
    """What the transformer predicts for one row, with tokens, positions and embeddings as diffusers makes them."""
    peer = plain_pipeline(pipe)

    def predict(latents, t, text):
        embeds, text_ids = peer.encode_prompt(text, max_sequence_length=LENGTH)
        positions = peer._prepare_latent_ids(latents)
        predicted = pipe.transformer(
            hidden_states=peer._pack_latents(latents),
            timestep=torch.full((1,), float(t) / 1000),
            encoder_hidden_states=embeds,
            txt_ids=text_ids,
            img_ids=positions,
        ).sample
        return peer._unpack_latents_with_ids(predicted, positions, *latents.shape[2:])

    return predict


def test_blocks_make_the_same_outliers():
    assert_same_in_blocks(pipeline())


def test_outliers_are_those_of_the_plain_loop():
    pipe = pipeline()
    # 1.9004305 at 10 steps and 0.4607291 at 200, for 24 latents, on a line
    mu = 1.9004304761 + (0.4607291466 - 1.9004304761) * (6 - 10) / 190
    hold_against_the_plain_loop(pipe, one_row(pipe), sigmas_of(6, mu))


@pytest.mark.parametrize(("steps", "side"), [(10, 64), (50, 64), (200, 16), (50, 66)])
def test_steps_are_shifted_as_by_diffusers(steps, side):
    from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

    schedule = pipeline().schedule_of(steps, torch.Size((1, 16, side, side)))
    assert schedule.mu == pytest.approx(compute_empirical_mu(side * side, steps), rel=1e-6)
    assert schedule.sigmas == pytest.approx(np.linspace(1, 1 / steps, steps))


def test_an_image_is_alone_as_in_a_batch():
    hold_alone_as_in_a_batch(pipeline())


@pytest.mark.parametrize("stop_step", [6, 3])
def test_without_terms_it_is_the_pipeline_of_diffusers_from_the_same_noise(stop_step):
    pipe = pipeline(dtype=torch.float32)
    peer = plain_pipeline(pipe)
    images = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(3))
    given = {"num_inference_steps": 6, "output_type": "pt"}
    found = pipe(images, IDS[:2], OODS[:2], stop_step=stop_step, generator=generators(2), **given, **OFF).images

    source = peer._encode_vae_image(2 * images - 1, None)
    noise = torch.cat([torch.randn(1, *source.shape[1:], generator=one) for one in generators(2)])
    peer.scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 6, 6), mu=pipe.schedule_of(6, source.shape).mu)
    first = peer.scheduler.sigmas[6 - stop_step]
    wanted = peer(
        prompt=["", ""],
        latents=(1 - first) * source + first * noise,
        sigmas=np.linspace(1, 1 / 6, 6)[-stop_step:],
        guidance_scale=1.0,
        height=16,
        width=24,
        max_sequence_length=LENGTH,
        **given,
    ).images
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_images_come_back_from_latents_as_the_autoencoder_has_them():
    pipe = pipeline()
    images = 2 * torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(3), dtype=torch.float64) - 1
    latents = pipe.encode_image(images, torch.device("cpu"), None)
    assert latents.shape == (2, pipe.latent_channels, 2, 3) == pipe.latent_shape(images)
    torch.testing.assert_close(latents, plain_pipeline(pipe)._encode_vae_image(images, None))
    torch.testing.assert_close(pipe.unscaled(latents), pipe.vae.encode(images).latent_dist.mode())


def test_latents_of_any_value_are_taken_as_they_are():
    pipe = pipeline()
    latents = 9 * latents_of(pipe)
    assert torch.equal(pipe.preprocess_image(latents), latents)
    with pytest.raises(ValueError, match="has 4 channels; the VAE takes 3, and tensors of latents have 16"):
        pipe.preprocess_image(latents[:, :4].clamp(0, 1))


def test_embeddings_take_the_place_of_prompts_and_text_encoder():
    pipe = pipeline()
    latents = latents_of(pipe)
    wanted = outliers(pipe, latents, id_prompt="a cat", ood_prompt="a dog")
    names = ["uncond_prompt_embeds", "id_prompt_embeds", "ood_prompt_embeds"]
    embeds = pipe.encode_texts(["", "a cat", "a dog"], torch.device("cpu"))["prompt_embeds"].split(1)
    bare = SONAFlux2Pipeline(**pipe.components | dict.fromkeys(["text_encoder", "tokenizer"]))
    bare.set_progress_bar_config(disable=True)
    found = outliers(bare, latents, id_prompt=None, ood_prompt=None, **dict(zip(names, embeds, strict=True)))
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="`text_encoder` is None, but prompts need it"):
        outliers(bare, latents)


def test_long_prompts_are_cut_with_a_warning(caplog):
    pipe = pipeline()
    outliers(pipe, latents_of(pipe), id_prompt="a very long prompt" * 9, stop_step=1)
    assert f"longer than {LENGTH} tokens" in caplog.text


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


def test_checkpoints_of_diffusers_are_loaded_by_the_file(tmp_path):
    components = parts(dtype=torch.float32)
    Flux2KleinPipeline(**components).save_pretrained(tmp_path)
    file = str(SONAFlux2Pipeline.standalone_file())
    loaded = DiffusionPipeline.from_pretrained(tmp_path, custom_pipeline=file, trust_remote_code=True)
    assert type(loaded).__name__ == "SONAFlux2Pipeline" and not isinstance(loaded, SONAFlux2Pipeline)
    loaded.set_progress_bar_config(disable=True)
    own = pipeline(dtype=torch.float32)
    made = [outliers(pipe, latents_of(own), guidance_scale=1.0) for pipe in (loaded, own)]  # float32 turns masks over
    torch.testing.assert_close(*made, atol=1e-3, rtol=0)
    turned = SONAFlux2Pipeline.from_pipe(Flux2KleinPipeline(**components))
    assert turned.transformer is components["transformer"]


def test_distilled_models_are_refused(tmp_path):
    Flux2KleinPipeline(**parts(), is_distilled=True).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"few steps \(is_distilled True\) .*: take FLUX.2 \[klein\] base") as error:
        SONAFlux2Pipeline.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


def test_the_parts_are_offloaded_in_the_order_of_last_use():
    pipe = pipeline(dtype=torch.float32)
    assert order_of_use(pipe, torch.rand(1, 3, 16, 16)) == pipe.model_cpu_offload_seq.split("->")


def test_adapters_change_outliers_by_their_scale(tmp_path):
    pipe = pipeline(dtype=torch.float32)
    plain = outliers(pipe, latents_of(pipe))
    other = parts(dtype=torch.float32)["transformer"]
    other.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    SONAFlux2Pipeline.save_lora_weights(tmp_path, transformer_lora_layers=get_peft_model_state_dict(other))
    pipe.load_lora_weights(tmp_path)
    assert (outliers(pipe, latents_of(pipe)) - plain).abs().max() > 1e-3
    unscaled = outliers(pipe, latents_of(pipe), cross_attention_kwargs={"scale": 0.0})
    torch.testing.assert_close(unscaled, plain, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance_embeds": True}, r"the guidance scale \(guidance_embeds True\) .*: take FLUX.2 \[klein\] base"),
        ({"in_channels": 32, "out_channels": 16}, "takes 32 channels and gives 16"),
        ({"vae_channels": 8}, "makes latents of 8 channels and the transformer takes 16"),
        ({"joint_attention_dim": WIDTH}, "Qwen3ForCausalLM gives embeddings of width 48 and the transformer takes 16"),
        ({"layers": 12}, "text encoder has 12 layers, and layer 27 is read"),
    ],
)
def test_other_checkpoints_are_refused(options, message):
    with pytest.raises(ValueError, match=message) as error:
        pipeline(**options)
    assert "\n" not in str(error.value)


def test_parts_of_other_families_are_refused(tiny_components):
    own = parts()
    with pytest.raises(ValueError, match="`vae` is a AutoencoderKL without means of its latents"):
        SONAFlux2Pipeline(**own | {"vae": tiny_components["vae"]})
    with pytest.raises(ValueError, match="text encoder has 2 layers, and layer 27 is read"):
        SONAFlux2Pipeline(**own | {"text_encoder": tiny_components["text_encoder"]})
    with pytest.raises(ValueError, match="UNet2DConditionModel without 'guidance_embeds'"):
        SONAFlux2Pipeline(**own | {"transformer": tiny_components["unet"]})


def test_calls_it_cannot_take_are_refused():
    pipe = pipeline()
    with pytest.raises(ValueError, match="`clip_skip` is 1, but FLUX"):
        outliers(pipe, latents_of(pipe), clip_skip=1)
    with pytest.raises(ValueError, match="multiples of 8"):
        pipe(torch.rand(1, 3, 12, 16), "a cat", "a dog")
    assert pipe.image_size == 512  # 1024 with the eight pixels of a real one
