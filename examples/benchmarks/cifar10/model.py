"""The diffusion model of the benchmark: loaded to compute in bfloat16, and drawn from for the judge."""

from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from judge import CLASSES, Judge
from torchvision.transforms.v2.functional import pil_to_tensor
from torchvision.utils import save_image
from ways import DRAWING_SCALE, peer

from sona_pipeline import SCHEDULERS, SONAPipeline


class HalfUNet(UNet2DConditionModel):
    """A UNet in bfloat16 that takes and gives float32.

    On processors that multiply bfloat16 this takes about half the time (`speed/run.py --only h`). Latents stay in
    float32: rounded at every step, they would carry a noise that round trips of ID images do not have, by which a
    detector could tell them apart.
    """

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def forward(self, sample, timestep, encoder_hidden_states, *args, return_dict: bool = True, **kwargs):
        half = torch.bfloat16
        found = (
            super()
            .forward(sample.to(half), timestep, encoder_hidden_states.to(half), *args, return_dict=False, **kwargs)[0]
            .float()
        )
        return UNet2DConditionOutput(sample=found) if return_dict else (found,)


def load_model(folder: Path, scheduler: str = "ddim") -> SONAPipeline:
    """The pipeline of a checkpoint of `train_latent_diffusion.py`, without progress bars."""
    unet = HalfUNet.from_pretrained(folder / "unet", torch_dtype=torch.bfloat16)
    pipe = SONAPipeline.from_pretrained(folder, unet=unet, trust_remote_code=True)
    pipe.scheduler = SCHEDULERS[scheduler].from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw_sheet(pipe: SONAPipeline, judge: Judge, folder: Path, per_class: int) -> str:
    """Draw images of the ID classes from noise, with eight of each on a sheet; a table of what the judge sees in them.

    Writes `judged.md` and `sheet.png` to `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawing, shown, right = peer(StableDiffusionPipeline, pipe), [], {}
    for number, name in enumerate(CLASSES):
        images = drawing(
            [f"a photo of a {name}"] * per_class,
            num_inference_steps=50,
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
    return text
