"""Ways that diffusers ships: what they make of an image is what its pipeline makes by itself."""

from dataclasses import replace

import numpy as np
import torch
from diffusers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    LEditsPPPipelineStableDiffusion,
    SemanticStableDiffusionPipeline,
    StableDiffusionDiffEditPipeline,
)

from sona_pipeline import sample
from sona_pipeline.generation.make import OutlierMaker
from sona_pipeline.generation.plan import plan_outliers
from sona_pipeline.generation.settings import GenerationSettings

STEPS = 5
SETTINGS = GenerationSettings(("bag", "sandal"), num_inference_steps=STEPS)


def made(way: str, pipe):
    """The outlier of one image, its item, source and prompts, and a copy of the generator that it was made with."""
    maker = OutlierMaker(pipe, plan_outliers(sample.id_images("train").take([0, 400]), replace(SETTINGS, way=way)))
    maker.way.begin(maker, maker.way.prepare(maker))
    work = maker.encode(maker.read(maker.plan.batch(np.arange(1))))
    generator = torch.Generator()
    generator.set_state(work.generators[0].get_state())
    (own,), (other,) = maker.prompts_of(work.items)
    return maker.denoise(work).outlier_latents, work, own, other, generator


def parts_of(pipe, scheduler) -> dict:
    names = ("vae", "text_encoder", "tokenizer", "unet")
    absent = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return {name: getattr(pipe, name) for name in names} | absent | {"scheduler": scheduler}


def test_sega_draws_the_id_prompt_less_its_meaning_and_with_the_other(pipe):
    found, _, own, other, generator = made("sega", pipe)
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    peer = SemanticStableDiffusionPipeline(**parts_of(pipe, scheduler))
    state, drawn = generator.get_state(), {}
    for concepts in ((own, other), (other, own)):
        generator.set_state(state)
        drawn[concepts[0]] = peer(
            own,
            editing_prompt=list(concepts),
            reverse_editing_direction=[True, False],
            edit_warmup_steps=1,
            num_inference_steps=STEPS,
            guidance_scale=3.0,
            height=32,
            width=32,
            generator=generator,
            output_type="latent",
        ).images
    assert torch.allclose(found, drawn[own], atol=1e-4)
    assert not torch.allclose(found, drawn[other], atol=1e-2)


@torch.no_grad()
def test_leditspp_inverts_the_source_and_turns_it_from_its_meaning_to_the_other(pipe):
    found, work, own, other, generator = made("leditspp", pipe)
    options = {"algorithm_type": "sde-dpmsolver++", "solver_order": 2}
    scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, **options)
    peer = LEditsPPPipelineStableDiffusion(**parts_of(pipe, scheduler))
    processors, stop_step = pipe.unet.attn_processors, work.items[0].stop_step
    image = pipe.decode(work.source_latents, "pil")[0]
    state, edited = generator.get_state(), {}
    for concepts in ((own, other), (other, own)):
        generator.set_state(state)
        peer.invert(image, num_inversion_steps=stop_step, skip=STEPS / stop_step - 1, generator=[generator])
        edited[concepts[0]] = peer(
            editing_prompt=list(concepts),
            reverse_editing_direction=[True, False],
            use_intersect_mask=False,
            generator=[generator],
            output_type="latent",
        ).images
        pipe.unet.set_attn_processor(dict(processors))
    assert torch.allclose(found, edited[own], atol=1e-4)
    assert not torch.allclose(found, edited[other], atol=1e-2)


@torch.no_grad()
def test_diffedit_masks_where_the_prompts_differ_and_draws_the_other_there(pipe, monkeypatch):
    found, work, own, other, generator = made("diffedit", pipe)
    scheduler, inverse = (kind.from_config(pipe.scheduler.config) for kind in (DDIMScheduler, DDIMInverseScheduler))
    parts = parts_of(pipe, scheduler) | {"inverse_scheduler": inverse}
    peer = StableDiffusionDiffEditPipeline(**parts)
    source = work.source_latents
    monkeypatch.setattr(peer, "prepare_image_latents", lambda image, count, *_: source.expand(count, -1, -1, -1))
    pixels = work.pixels / 2 + 0.5
    schedule = {"num_inference_steps": STEPS, "inpaint_strength": (work.items[0].stop_step + 0.5) / STEPS}
    state, edited = generator.get_state(), {}
    for prompts in ((own, other), (other, own)):
        generator.set_state(state)
        mask = peer.generate_mask(
            pixels, prompts[1], source_prompt=prompts[0], num_maps_per_mask=10, generator=generator
        )
        latents = peer.invert(prompts[0], pixels, **schedule).latents
        negative = {"negative_prompt": prompts[0], "output_type": "latent"}
        edited[prompts[0]] = peer(prompts[1], mask_image=mask, image_latents=latents, **negative, **schedule).images
    assert torch.allclose(found, edited[own], atol=1e-4)
    assert not torch.allclose(found, edited[other], atol=1e-2)
