import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler

from sona_pipeline.generation.ways.trajectory import higher, levels, lower, predicted_noise


def noise(seed: int) -> torch.Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_step_down_is_that_of_diffusers(pipe, eta):
    scheduler = DDIMScheduler.from_config(pipe.scheduler.config, prediction_type="epsilon", clip_sample=False)
    scheduler.set_timesteps(10)
    latents, eps, nothing = noise(0), noise(1), torch.zeros(2, 4, 8, 8)
    for level, t in zip(levels(pipe, 10), scheduler.timesteps):
        assert level.t == t
        expected = scheduler.step(eps, t, latents, eta=eta, variance_noise=nothing).prev_sample
        if level.below < 1:  # the last step of diffusers ends at the first level of the training, and not at the image
            torch.testing.assert_close(lower(latents, eps, level, eta), expected, rtol=1e-4, atol=1e-4)


def test_a_step_up_takes_a_step_down_back_and_is_that_of_diffusers(pipe):
    latents, eps = noise(0), noise(1)
    for level in levels(pipe, 10):
        down = lower(latents, eps, level)
        torch.testing.assert_close(higher(down, eps, level), latents, rtol=1e-4, atol=1e-4)
    inverse = DDIMInverseScheduler.from_config(pipe.scheduler.config, prediction_type="epsilon", clip_sample=False)
    inverse.set_timesteps(10)
    below, level = levels(pipe, 10)[-4], levels(pipe, 10)[-5]
    place = inverse.timesteps.tolist().index(level.t)
    assert inverse.timesteps[place - 1] == below.t
    expected = inverse.step(eps, inverse.timesteps[place], latents).prev_sample
    torch.testing.assert_close(higher(latents, eps, level), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_noise_is_the_same_whatever_the_unet_predicts(pipe, kind, monkeypatch):
    """A UNet that knows the image and the noise says each in its own terms."""
    source, eps = noise(3), noise(4)
    for level in levels(pipe, 5):
        latents = level.signal**0.5 * source + (1 - level.signal) ** 0.5 * eps
        said = {
            "epsilon": eps,
            "sample": source,
            "v_prediction": level.signal**0.5 * eps - (1 - level.signal) ** 0.5 * source,
        }[kind]
        monkeypatch.setattr(pipe.unet, "forward", lambda rows, t, said=said, **_: (torch.cat([said] * 3),))
        pipe.scheduler.register_to_config(prediction_type=kind)
        prompts = [torch.zeros(2, 77, 8)] * 3
        for found in predicted_noise(pipe, latents, level, prompts):
            torch.testing.assert_close(found, eps, rtol=1e-3, atol=1e-3)
