"""Components of another kind are refused in a sentence that names them; those that leave a value out are taken."""

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DDPMScheduler,
    EDMEulerScheduler,
    UNet2DConditionModel,
    UNet2DModel,
)
from tiny_pipelines import WIDTH, build, byte_tokenizer
from transformers import CLIPTextConfig, CLIPTextModel

from sona_pipeline.pipelines.families.stable_diffusion import SONAPipeline

PLAIN = "take the plain text-to-image checkpoint"
IMAGE = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def unet(**changes):
    return lambda: UNet2DConditionModel.from_config(build()["unet"].config, **changes)


def vae(**changes):
    return lambda: AutoencoderKL.from_config(build()["vae"].config, **changes)


def text_encoder(width):
    return CLIPTextModel(
        CLIPTextConfig(hidden_size=width, intermediate_size=8, num_attention_heads=2, num_hidden_layers=1)
    )


XL = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 64}
OTHERS = {
    "inpainting": ("unet", unet(in_channels=9), rf"takes 9 channels .* made for masks, too \(inpainting\); {PLAIN}"),
    "depth": ("unet", unet(in_channels=5), f"takes 5 channels .* made for depth maps, too; {PLAIN}"),
    "editing": ("unet", unet(in_channels=8), rf"takes 8 channels .* \(InstructPix2Pix\); {PLAIN}"),
    "upscaling": ("unet", unet(in_channels=7, num_class_embeds=1000), f"takes 7 channels .* to enlarge, too; {PLAIN}"),
    "learned variance": (
        "unet",
        unet(out_channels=8),
        f"takes 4 channels and gives 8: .* something else, too; {PLAIN}",
    ),
    "XL": ("unet", unet(**XL), rf"is of Stable Diffusion XL or its kin \(addition_embed_type 'text_time'\): {PLAIN}"),
    "LCM": ("unet", unet(time_cond_proj_dim=8), rf"distilled .*\(time_cond_proj_dim 8, as in LCM\).*: {PLAIN}"),
    "classes": ("unet", unet(num_class_embeds=10), f"has num_class_embeds 10 and needs more than a prompt: {PLAIN}"),
    "class embeddings": ("unet", unet(class_embed_type="timestep"), "has class_embed_type 'timestep' and needs more"),
    "no prompts": (
        "unet",
        lambda: UNet2DModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            down_block_types=["DownBlock2D"],
            up_block_types=["UpBlock2D"],
            block_out_channels=[8],
            norm_num_groups=4,
        ),
        f"`unet` is a UNet2DModel without 'cross_attention_dim', and takes no prompts: {PLAIN}",
    ),
    "wide prompts": ("unet", unet(cross_attention_dim=24), f"of width {WIDTH} and the UNet takes 24: take both"),
    "several widths": ("unet", unet(cross_attention_dim=[16, 24]), r"prompts of several widths \[16, 24\]"),
    "other text encoder": ("text_encoder", lambda: text_encoder(32), "of width 32 and the UNet takes 16: take both"),
    "16 channels": ("vae", vae(latent_channels=16), "makes latents of 16 channels and the UNet takes 4: take both"),
    "RGB to grey": ("vae", vae(out_channels=1), "takes images of 3 channels and gives 1: take one that"),
    "no latents": ("vae", lambda: build()["unet"], "`vae` is a UNet2DConditionModel without 'latent_channels'"),
    "EDM": ("scheduler", EDMEulerScheduler, "`EDMEulerScheduler` has no 'alphas_cumprod'"),
}


@pytest.mark.parametrize(("name", "made", "message"), OTHERS.values(), ids=OTHERS)
def test_component_of_another_kind_is_refused_when_it_is_given(name, made, message):
    with pytest.raises(ValueError, match=message) as caught:
        SONAPipeline(**build() | {name: made()})
    assert "\n" not in str(caught.value)


def call(pipe, **options):
    pipe.set_progress_bar_config(disable=True)
    given = {
        "stop_step": 2,
        "num_inference_steps": 4,
        "output_type": "pt",
        "generator": torch.Generator().manual_seed(0),
    }
    return pipe(IMAGE, "a cat", "a dog", **given | options).images


def test_component_of_another_kind_that_is_set_later_is_refused_by_the_call(tiny_pipe):
    tiny_pipe.unet = unet(in_channels=9)()
    with pytest.raises(ValueError, match="made for masks, too"):
        call(tiny_pipe)


def test_one_width_in_a_list_is_that_width():
    components = build()
    config = components["unet"].config
    listed = UNet2DConditionModel.from_config(config, cross_attention_dim=[WIDTH, WIDTH])
    listed.load_state_dict(components["unet"].state_dict())
    assert torch.equal(call(SONAPipeline(**components | {"unet": listed})), call(SONAPipeline(**components)))


def test_prompt_is_as_long_as_the_text_encoder_where_the_tokenizer_does_not_say():
    tokenizer = byte_tokenizer()
    tokenizer.model_max_length = int(1e30)
    found = call(SONAPipeline(**build() | {"tokenizer": tokenizer}))
    assert torch.equal(found, call(SONAPipeline(**build())))


@pytest.mark.parametrize(("given", "size"), [(8, 32), ([8, 8], 32), ((16, 16), 64)])
def test_size_of_the_model(given, size, tiny_pipe):
    tiny_pipe.unet.register_to_config(sample_size=given)
    assert tiny_pipe.image_size == size


@pytest.mark.parametrize("given", [None, [8, 16], []])
def test_size_that_the_model_does_not_say_has_to_be_given(given, tiny_pipe):
    tiny_pipe.unet.register_to_config(sample_size=given)
    with pytest.raises(ValueError, match=r"has the sample_size .*, which is not the side of a square: give the size"):
        _ = tiny_pipe.image_size
    assert call(tiny_pipe).isfinite().all()


def test_tiny_autoencoder_is_taken():
    small = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
    )
    assert call(SONAPipeline(**build() | {"vae": small})).shape == IMAGE.shape


# A VAE that overflows


def overflowing(pipe, part, image=None):
    """Let the part of the VAE give infinite values in float16, for one image or all."""

    def spoil(module, args, output):
        if output.dtype == torch.float16:
            output[slice(None) if image is None else image] = float("inf")

    getattr(pipe.vae, part).register_forward_hook(spoil)
    return pipe


@pytest.fixture
def half_pipe():
    pipe = SONAPipeline(**build(dtype=torch.float16))
    pipe.vae.register_to_config(force_upcast=False)
    return pipe


@pytest.mark.filterwarnings("error:invalid value encountered")
@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_pixels_that_are_not_finite_are_an_error_and_never_a_black_image(half_pipe, output_type):
    pipe = overflowing(half_pipe, "decoder", image=1)
    message = r"VAE gives NaN or infinite values for image 1 in float16: .*`pipe.vae.to\(torch.float32\)`"
    with pytest.raises(FloatingPointError, match=message):
        pipe(IMAGE.repeat(3, 1, 1, 1), "a cat", "a dog", stop_step=2, num_inference_steps=4, output_type=output_type)


def test_encoded_latents_that_are_not_finite_are_an_error(half_pipe):
    with pytest.raises(FloatingPointError, match="VAE gives NaN or infinite values for image 0 in float16"):
        call(overflowing(half_pipe, "encoder"))


def test_the_way_out_that_the_error_names_works(half_pipe):
    overflowing(half_pipe, "decoder").vae.to(torch.float32)
    assert call(half_pipe).isfinite().all()


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_force_upcast_is_honoured_where_float16_overflows(half_pipe, part):
    wanted = SONAPipeline(**half_pipe.components)
    wanted.vae.to(torch.float32)
    wanted = call(wanted, guidance_scale=0.0)  # masks would make much of a small difference
    half_pipe.vae.to(torch.float16)
    half_pipe.vae.register_to_config(force_upcast=True)
    found = call(overflowing(half_pipe, part), guidance_scale=0.0)
    assert half_pipe.vae.dtype == torch.float32
    torch.testing.assert_close(found, wanted, atol=5e-2, rtol=0)


def test_float32_that_is_not_finite_is_not_blamed_on_the_dtype(tiny_pipe):
    with torch.no_grad():
        tiny_pipe.vae.decoder.conv_out.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="in float32: its weights or the latents are not good"):
        call(tiny_pipe)


# Numbers


NUMBERS = {
    "guidance NaN": ({"guidance_scale": float("nan")}, "`guidance_scale` is nan, but has to be a finite number"),
    "guidance infinite": ({"guidance_scale": float("inf")}, "`guidance_scale` is inf, but"),
    "guidance a word": ({"guidance_scale": "strong"}, "`guidance_scale` is 'strong', but"),
    "guidance None": ({"guidance_scale": None}, "`guidance_scale` is None, but"),
    "eta NaN": ({"eta": float("nan")}, "`eta` is nan"),
    "momentum NaN": ({"momentum_scale": float("nan")}, "`momentum_scale` is nan"),
    "warm-up": ({"warmup_steps": -1}, "`warmup_steps` is -1, but has to be a whole number from 0 on"),
    "cool-down": ({"cooldown_steps": 2.5}, r"`cooldown_steps` is 2\.5"),
    "clip skip": ({"clip_skip": -1}, "`clip_skip` is -1"),
    "clip skip too far": ({"clip_skip": 7}, "`clip_skip` is 7, but the text encoder has 2 layers only"),
    "threshold a word": ({"mask_threshold": "0.2"}, "`mask_threshold` is '0.2'"),
    "threshold NaN": ({"mask_threshold": float("nan")}, "`mask_threshold` is nan"),
    "strength None": ({"stop_step": None, "strength": [None]}, r"`strength` is None, but has to be in \(0, 1\]"),
    "strength a word": ({"stop_step": None, "strength": "half"}, "`strength`"),
    "stop step a word": ({"stop_step": ["2"]}, r"`stop_step` is \['2'\], but has to be made of integers"),
    "stop step true": ({"stop_step": True}, "`stop_step` is True, but has to be made of integers"),
    "no prompt": ({"id_prompt": ""}, "`id_prompt` is '', but an empty prompt means nothing"),
    "a blank prompt": ({"ood_prompt": ["  "]}, r"`ood_prompt` is \['  '\], but an empty prompt means nothing"),
    "generator": ({"generator": 7}, "`generator` is 7, but has to be a `torch.Generator` or one an image"),
    "generators": ({"generator": [None]}, r"`generator` is \[None\]"),
    "callback": ({"callback_on_step_end": "print"}, "`callback_on_step_end` is 'print', but has to be a function"),
    "embeddings": ({"uncond_prompt_embeds": [1]}, "`uncond_prompt_embeds` has to be a tensor, but is a list"),
}


@pytest.mark.parametrize(("changes", "message"), NUMBERS.values(), ids=NUMBERS)
def test_bad_number_is_one_sentence(changes, message, tiny_pipe):
    tiny_pipe.vae.encode = lambda *_: pytest.fail("a model was run")
    given = {"id_prompt": "a cat", "ood_prompt": "a dog", "stop_step": 2, "num_inference_steps": 4}
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        tiny_pipe(IMAGE, **given | changes)
    assert "\n" not in str(caught.value)


def test_ddpm_of_a_checkpoint_is_taken_with_its_own_noise():
    components = build(scheduler=DDPMScheduler)
    assert call(SONAPipeline(**components)).isfinite().all()
