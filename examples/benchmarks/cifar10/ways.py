"""Ways to make an outlier of an image: SONA and its ablations, and the methods that it is compared to.

A way takes what is planned for a batch and gives the latents of the outliers. All start from the same plan, so that an
image has the same OOD label, and the same stop step where the way has one, whatever it is made by.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers import (
    DDIMInverseScheduler,
    DPMSolverMultistepScheduler,
    LEditsPPPipelineStableDiffusion,
    SemanticStableDiffusionPipeline,
    StableDiffusionDiffEditPipeline,
    StableDiffusionPipeline,
)

from sona_pipeline import OutlierMaker, Work

DRAWING_SCALE = 3.0
"""Classifier-free guidance of text-to-image, which the sample sheets of the model are drawn with as well."""
Way = Callable[[OutlierMaker, Work], torch.Tensor]


def sona(**options: Any) -> Way:
    """SONA with other arguments of the pipeline's call than those in the settings: ablations, SEGA's options."""
    return lambda maker, work: maker.denoised(work.items, work.source_latents, work.generators, **options)


def peer(kind: type, pipe, **others):
    """A pipeline of diffusers of the class `kind` with the parts of ours, without safety checker or progress bar."""
    parts = {name: getattr(pipe, name) for name in ("vae", "text_encoder", "tokenizer", "unet")}
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    absent = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    peer = kind(**parts, scheduler=scheduler, **absent, **others)
    peer.set_progress_bar_config(disable=True)
    return peer


def round_trip(maker: OutlierMaker, work: Work) -> torch.Tensor:
    """The source as it is, by way of the autoencoder: a check for shortcuts, since nothing in it is OOD."""
    return work.source_latents


def cut_paste(maker: OutlierMaker, work: Work) -> torch.Tensor:
    """CutPaste (Li et al. 2021): a patch of 2 to 15 % of the image, 0.3 to 3.3 times as wide as high, put elsewhere."""
    pixels = maker.pipe.vae.decode(work.source_latents / maker.pipe.vae.config.scaling_factor).sample
    for image, generator in zip(pixels, work.generators):
        area, shape, *places = torch.rand(6, generator=generator).tolist()
        side = image.shape[-1]
        pixels_in = side**2 * (0.02 + 0.13 * area)
        aspect = 0.3 * (3.3 / 0.3) ** shape
        high, wide = (min(side, max(1, round(pixels_in**0.5 * f))) for f in (aspect**-0.5, aspect**0.5))
        y, new_y = (int(place * (side - high + 1)) for place in places[:2])
        x, new_x = (int(place * (side - wide + 1)) for place in places[2:])
        patch = image[:, y : y + high, x : x + wide].clone()
        image[:, new_y : new_y + high, new_x : new_x + wide] = patch
    return maker.pipe.vae.encode(pixels).latent_dist.mode() * maker.pipe.vae.config.scaling_factor


def text_to_image(maker: OutlierMaker, work: Work) -> torch.Tensor:
    """Images of the OOD labels from noise, without the source: the idea of DreamOOD (Du et al. 2023)."""
    _, ood_prompts = maker.prompts_of(work.items)
    embeds = maker.prompts(ood_prompts)
    return peer(StableDiffusionPipeline, maker.pipe)(
        prompt_embeds=embeds,
        negative_prompt_embeds=maker.prompts([""]).expand_as(embeds),
        num_inference_steps=maker.settings.num_inference_steps,
        guidance_scale=DRAWING_SCALE,
        generator=work.generators,
        output_type="latent",
    ).images


def sega(maker: OutlierMaker, work: Work) -> torch.Tensor:
    """SEGA (Brack et al. 2023) as diffusers ships it: ID prompt, its meaning removed, the OOD one added, from noise.

    All images of a call share their concepts, so that calls are by pairs of labels.
    """
    pipe = peer(SemanticStableDiffusionPipeline, maker.pipe)
    return _in_groups(
        work,
        list(zip(*maker.prompts_of(work.items))),
        lambda pair, members: (
            pipe(
                [pair[0]] * len(members),
                editing_prompt=list(pair),
                reverse_editing_direction=[True, False],
                num_inference_steps=maker.settings.num_inference_steps,
                guidance_scale=DRAWING_SCALE,
                generator=[work.generators[k] for k in members],
                output_type="latent",
            ).images
        ),
    )


def leditspp(maker: OutlierMaker, work: Work) -> torch.Tensor:
    """LEDITS++ (Brack et al. 2024) as diffusers ships it: inversion, then the ID meaning removed and the OOD one added.

    Its masks are made for four latent channels.
    """
    pipe, steps = peer(LEditsPPPipelineStableDiffusion, maker.pipe), maker.settings.num_inference_steps
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(
        pipe.scheduler.config, algorithm_type="sde-dpmsolver++", solver_order=2
    )
    groups = list(zip(*maker.prompts_of(work.items), (item.stop_step for item in work.items)))

    def edit(group: tuple[str, str, int], members: list[int]) -> torch.Tensor:
        images, _ = maker.pipe.decode(work.source_latents[members], "pil")
        generator = work.generators[members[0]]
        pipe.invert(images, num_inversion_steps=group[2], skip=steps / group[2] - 1, generator=generator)
        return pipe(
            editing_prompt=list(group[:2]),
            reverse_editing_direction=[True, False],
            use_intersect_mask=False,
            generator=generator,
            output_type="latent",
        ).images

    return _in_groups(work, groups, edit)


def diffedit(maker: OutlierMaker, work: Work) -> torch.Tensor:
    """DiffEdit (Couairon et al. 2023) as diffusers ships it: a mask from two prompts, inversion, inpainting."""
    inverse = DDIMInverseScheduler.from_config(maker.pipe.scheduler.config)
    pipe = peer(StableDiffusionDiffEditPipeline, maker.pipe, inverse_scheduler=inverse)
    id_prompts, ood_prompts = maker.prompts_of(work.items)
    steps = maker.settings.num_inference_steps

    def edit(stop_step: int, members: list[int]) -> torch.Tensor:
        images, _ = maker.pipe.decode(work.source_latents[members], "pil")
        sources, targets = ([prompts[k] for k in members] for prompts in (id_prompts, ood_prompts))
        generator, strength = work.generators[members[0]], (stop_step + 0.5) / steps
        mask = pipe.generate_mask(images, targets, source_prompt=sources, generator=generator)
        inverted = pipe.invert(
            sources, images, num_inference_steps=steps, inpaint_strength=min(strength, 1.0), generator=generator
        ).latents
        return pipe(
            targets,
            mask_image=mask,
            image_latents=inverted,
            negative_prompt=sources,
            num_inference_steps=steps,
            inpaint_strength=min(strength, 1.0),
            generator=generator,
            output_type="latent",
        ).images

    return _in_groups(work, [item.stop_step for item in work.items], edit)


def _in_groups(work: Work, groups: list, edit: Callable[[Any, list[int]], torch.Tensor]) -> torch.Tensor:
    """The results of `edit(group, members)` for the members of each group, put into the order of the batch."""
    results = torch.empty_like(work.source_latents)
    for group, members in _members(groups):
        results[members] = edit(group, members).to(results.dtype)
    return results


def _members(groups: list) -> Iterator[tuple[Any, list[int]]]:
    order = sorted(range(len(groups)), key=groups.__getitem__)
    for group, members in itertools.groupby(order, key=groups.__getitem__):
        yield group, list(members)
