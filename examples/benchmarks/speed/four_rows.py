"""SONA beside a loop with four UNet rows an image and step, and one stop step a batch.

So works the code that the authors of the paper released, by its description; the loop here is our own. Both make as
many outliers in the same batches, and the steps of a batch have the same sum: the loop denoises each batch from its
mean stop step, and SONA each image from one of its own, as `generate_outliers` sorts images of all stop steps.
"""

import torch
from diffusers.utils.torch_utils import randn_tensor
from mask_routes import by_quantile
from planned import arguments_of, plan_of
from timing import Comparison, Ratio, rounds_in_turn

from sona_pipeline import SONAPipeline, load_pipeline

MEANS = (13, 38)
"""Mean stop step of each batch, of 50."""
AROUND = tuple(round(12 * k / 31) - 6 for k in range(32))
"""The stop steps of the images of a batch, less their mean."""


def compare(rounds: int) -> list[Comparison]:
    """Outlier for outlier, from PIL images to PIL images, in float32."""
    pipe, size = load_pipeline("tiny", "cpu", dtype="float32"), len(AROUND)
    plan = plan_of(size * len(MEANS))

    def batches():
        for number, mean in enumerate(MEANS):
            arguments = arguments_of(pipe, plan, range(number * size, (number + 1) * size))
            yield arguments, mean

    def sona() -> None:
        for arguments, mean in batches():
            pipe(**arguments | {"stop_step": [mean + around for around in AROUND]})

    @torch.no_grad()
    def loop() -> None:
        for arguments, mean in batches():
            pipe.decode(four_rows(pipe, **arguments | {"stop_step": mean}), "pil")

    counts = {"images": len(plan), "batch size": size, "steps of all images": size * sum(MEANS)}
    seconds = rounds_in_turn({"four rows": loop, "SONA": sona}, rounds)
    ratio = Ratio("four rows", "SONA", at_least=1.3)
    return [Comparison("embedded model", counts, len(plan), "outliers", seconds, (ratio,))]


@torch.no_grad()
def four_rows(
    pipe: SONAPipeline,
    image: list,
    id_prompt: list[str],
    ood_prompt: list[str],
    stop_step: int,
    generator: list[torch.Generator],
    num_inference_steps: int = 50,
    guidance_scale: float = 10.0,
    mask_threshold: float = 0.2,
) -> torch.Tensor:
    """Latents of the outliers of a batch, denoised from one stop step; the fourth row of the UNet is not used."""
    count, device = len(image), pipe.device
    prompts = {"id_prompt": id_prompt, "ood_prompt": ood_prompt}
    embeds = pipe.encode_prompts(count, prompts, dict.fromkeys(["uncond_prompt", *prompts]), device)["prompt_embeds"]
    embeds = torch.cat([embeds, embeds[1:2]]).flatten(0, 1)
    source = pipe.encode_image(pipe.preprocess_image(image), device, generator)
    noise = randn_tensor(source.shape, generator=generator, device=device, dtype=source.dtype)
    timesteps = pipe.schedule_of(num_inference_steps, source.shape).set(pipe.scheduler, device)[-stop_step:]
    latents = pipe.scheduler.add_noise(source, noise, timesteps[:1])
    for t in timesteps:
        rows = pipe.unet(torch.cat([latents] * 4), t, encoder_hidden_states=embeds, return_dict=False)[0]
        noise_uncond, noise_id, noise_ood, _ = rows.chunk(4)
        guidance = guidance_of(noise_id - noise_uncond, noise_ood - noise_uncond, mask_threshold)
        latents = pipe.scheduler.step(noise_uncond + guidance_scale * guidance, t, latents, return_dict=False)[0]
    return latents


def guidance_of(psi_id: torch.Tensor, psi_ood: torch.Tensor, threshold: float) -> torch.Tensor:
    """The guidance (4) of the paper, with masks by quantiles of each channel."""
    id_semantic, id_nuisance = by_quantile(psi_id, threshold)
    ood_semantic, _ = by_quantile(psi_ood, threshold)
    return id_nuisance * psi_id - id_semantic * psi_id + (ood_semantic & ~id_nuisance) * psi_ood
