"""The diffusion model of the benchmark: loaded to compute in bfloat16, and drawn from for the judge."""

from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from judge import CLASSES, Judge
from torch.utils._pytree import tree_map
from torchvision.transforms.v2.functional import pil_to_tensor
from torchvision.utils import save_image

from sona_pipeline import SONAPipeline, load_pipeline

DRAWING_SCALE = 3.0
"""Classifier-free guidance of drawn images."""
DRAWING_STEPS = 50


def load_model(folder: Path, scheduler: str = "ddim") -> SONAPipeline:
    """The pipeline of a checkpoint of `train_latent_diffusion.py`, whose UNet computes in bfloat16.

    diffusers' own pipelines, which give their UNet what they have in float32, can use it, too.
    """
    pipe = load_pipeline(str(folder), "cpu", scheduler=scheduler, dtype="bfloat16", trust_remote_code=True)
    pipe.unet.register_forward_pre_hook(_in_half, with_kwargs=True)
    pipe.unet.register_forward_hook(lambda unet, arguments, output: tree_map(torch.Tensor.float, output))
    return pipe


def _drawing(pipe: SONAPipeline) -> StableDiffusionPipeline:
    """diffusers' own pipeline with the parts of ours."""
    drawing = StableDiffusionPipeline(**pipe.components, requires_safety_checker=False)
    drawing.set_progress_bar_config(disable=True)
    return drawing


def _in_half(unet: UNet2DConditionModel, arguments: tuple, named: dict) -> tuple[tuple, dict]:
    """The arguments of a UNet, with latents and prompts in its dtype."""
    sample, *others = arguments
    prompts = named["encoder_hidden_states"].to(unet.dtype)
    return (sample.to(unet.dtype), *others), named | {"encoder_hidden_states": prompts}


def draw_sheet(pipe: SONAPipeline, judge: Judge, folder: Path, per_class: int) -> dict[str, float]:
    """Draw images of the ID classes from noise: how many percent the judge puts into each, and into the right of "all".

    Writes `judged.md` and, with eight images of each class, `sheet.png` to `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawing, shown, right = _drawing(pipe), [], {}
    for number, name in enumerate(CLASSES):
        images = drawing(
            [f"a photo of a {name}"] * per_class,
            num_inference_steps=DRAWING_STEPS,
            guidance_scale=DRAWING_SCALE,
            generator=torch.Generator().manual_seed(number),
        ).images
        right[name] = 100 * sum(said == name for said in judge.names(images)) / per_class
        shown += [pil_to_tensor(image) / 255 for image in images[:8]]
    save_image(torch.stack(shown), folder / "sheet.png", nrow=8)
    right["all"] = sum(right.values()) / len(right)
    lines = [f"Of {per_class} images drawn of each class, the judge puts into it:\n", "| class | % |", "|---|--:|"]
    text = "\n".join([*lines, *(f"| {name} | {share:.1f} |" for name, share in right.items())]) + "\n"
    (folder / "judged.md").write_text(text, encoding="utf-8")
    return right
