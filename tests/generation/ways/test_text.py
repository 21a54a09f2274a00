import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from sona_pipeline import sample
from sona_pipeline.generation.checkpoint import load_pipeline
from sona_pipeline.generation.make import OutlierMaker
from sona_pipeline.generation.plan import plan_outliers
from sona_pipeline.generation.settings import GenerationSettings


@pytest.mark.parametrize("scheduler", ["ddim", "unipc", "euler"])
@pytest.mark.parametrize("way", ["text", "fakeit"])
def test_images_are_those_of_diffusers(scheduler, way):
    pipe = load_pipeline("tiny", "cpu", dtype="float32", scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    images = sample.id_images("train").take(range(0, 1500, 300))
    settings = GenerationSettings(("bag", "sandal"), num_inference_steps=5, way=way)
    maker = OutlierMaker(pipe, plan_outliers(images, settings))
    work = maker.encode(maker.read(maker.plan.batch(np.arange(5))))
    states = [generator.get_state() for generator in work.generators]
    made = maker.denoise(work).outlier_latents
    peer = StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
    peer.set_progress_bar_config(disable=True)
    prompts = maker.prompts_of(work.items)[way == "text"]
    generators = [torch.Generator().set_state(state) for state in states]
    expected = peer(
        prompts,
        num_inference_steps=5,
        guidance_scale=3.0,
        generator=generators,
        height=32,
        width=32,
        output_type="latent",
    ).images
    torch.testing.assert_close(made, expected, rtol=1e-3, atol=1e-3)
