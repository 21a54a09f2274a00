"""In half precision the UNet computes in half, and everything that lasts from step to step is in float32."""

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler
from tiny_pipelines import build

from sona_pipeline.pipelines.families.stable_diffusion import SONAPipeline
from sona_pipeline.pipelines.guidance import sona_guidance

STOPS = [3, 5, 1]
MASKS = ("id_semantic_mask", "id_nuisance_mask", "ood_semantic_mask", "ood_unfiltered_mask")
IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(7))
# diffusers' schedulers and NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
halves = pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)


def pipeline(half: torch.dtype, **options) -> SONAPipeline:
    """A random pipeline whose UNet alone is in half precision."""
    pipe = SONAPipeline(**build(**options))
    pipe.unet.to(half)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(k) for k in range(3)]


def call(pipe, **changes):
    given = {"stop_step": STOPS, "num_inference_steps": 6, "generator": generators(), "output_type": "latent"}
    return pipe(IMAGES, "a cat", "a dog", **given | changes)


def seen_by_callback(pipe, **changes) -> list[dict[str, torch.Tensor]]:
    seen = []
    call(
        pipe,
        callback_on_step_end=lambda _, step, t, tensors: seen.append({k: v.clone() for k, v in tensors.items()}) or {},
        callback_on_step_end_tensor_inputs=["latents", "noise_pred", "guidance", *MASKS],
        **changes,
    )
    return seen


@halves
@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler])
@pytest.mark.parametrize("momentum_scale", [0.0, 0.3])
def test_what_lasts_is_float32_at_every_step_and_more_than_half_of_it(half, scheduler, momentum_scale):
    for tensors in seen_by_callback(pipeline(half, scheduler=scheduler), momentum_scale=momentum_scale):
        for name in ("latents", "noise_pred", "guidance"):
            assert tensors[name].dtype == torch.float32
        rounded = tensors["latents"].to(half).float()
        assert (rounded != tensors["latents"]).float().mean() > 0.5


@halves
@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler])
def test_the_unet_is_called_in_its_dtype_and_masks_are_those_of_its_predictions_in_float32(half, scheduler):
    pipe, outputs, inputs = pipeline(half, scheduler=scheduler), [], []

    def note(module, args, named, output):
        inputs.append({args[0].dtype, named["encoder_hidden_states"].dtype, output[0].dtype})
        outputs.append(output[0].float())

    pipe.unet.register_forward_hook(note, with_kwargs=True)
    seen = seen_by_callback(pipe, stop_step=3)
    assert inputs == [{half}] * 3
    for output, tensors in zip(outputs, seen, strict=True):
        uncond, noise_id, noise_ood = output.chunk(3)
        wanted = sona_guidance(uncond, noise_id, noise_ood)
        for name in MASKS:
            assert torch.equal(tensors[name], getattr(wanted, name))
        assert torch.equal(tensors["guidance"], wanted.guidance)
        assert torch.equal(tensors["noise_pred"], uncond + 10 * wanted.guidance)


@halves
def test_steps_are_those_of_the_scheduler_in_float32(half):
    pipe = pipeline(half)
    seen = seen_by_callback(pipe, stop_step=4)
    pipe.scheduler.set_timesteps(6)
    for before, after, t in zip(seen, seen[1:], pipe.scheduler.timesteps[3:]):
        wanted = pipe.scheduler.step(after["noise_pred"], t, before["latents"]).prev_sample
        assert torch.equal(after["latents"], wanted)


@halves
@pytest.mark.parametrize("vae", ["float32", "half"])
def test_seeds_draw_what_they_draw_in_float32(half, vae):
    pipe, plain = pipeline(half), SONAPipeline(**build())
    if vae == "half":
        pipe.vae.to(half)
    plain.set_progress_bar_config(disable=True)
    first = [seen_by_callback(one, stop_step=[1, 6, 1])[0]["latents"][[0, 2]] for one in (pipe, plain)]
    states = [[one.get_state() for one in given] for given in (generators(), generators())]
    for one, given in zip((pipe, plain), states):
        drawn = generators()
        assert call(one, stop_step=None, generator=drawn).stop_steps == call(plain, stop_step=None).stop_steps
        given[:] = [generator.get_state() for generator in drawn]
    assert all(map(torch.equal, *states))
    torch.testing.assert_close(*first, rtol=0, atol=0 if vae == "float32" else 0.1)


@halves
def test_latents_of_the_caller_are_taken_in_float32(half):
    pipe = pipeline(half)
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    given = {"stop_step": 2, "num_inference_steps": 4, "output_type": "latent"}
    made = pipe(latents, "a cat", "a dog", generator=generators(), **given).images
    assert made.dtype == torch.float32
    assert torch.equal(made, pipe(latents.double(), "a cat", "a dog", generator=generators(), **given).images)
    assert not torch.equal(made, pipe(latents.to(half), "a cat", "a dog", generator=generators(), **given).images)


@halves
def test_half_is_near_to_float32(half):
    whole = SONAPipeline(**build())
    whole.set_progress_bar_config(disable=True)
    found, wanted = (call(pipe, guidance_scale=0.0).images for pipe in (pipeline(half), whole))
    assert 0 < (found - wanted).abs().max() < 0.05 * wanted.abs().max()


def test_float64_stays_float64(make_pipe):
    assert {tensors["latents"].dtype for tensors in seen_by_callback(make_pipe())} == {torch.float64}
