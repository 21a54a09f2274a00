"""Job: one outlier of every image of a labelled set, as an image folder that the ecosystem opens as it is."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from transformers.utils import logging as transformers_logging

from sona_pipeline import TINY_MODEL
from sona_pipeline.data import ImageSet, fit, is_grey
from sona_pipeline.files import JsonLines, save_image, settle_settings
from sona_pipeline.outlier_set import OUTLIERS, RECONSTRUCTIONS
from sona_pipeline.pipeline import SONAPipeline, check_mask_options
from sona_pipeline.progress import Track


@dataclass(frozen=True)
class GenerationSettings:
    """How outliers are made; together with the model and the images it fixes every one of them.

    Attributes:
        ood_labels: meanings to add, one drawn for each image; disjoint from the ID classes.
        prompt: template of the prompts, with `{}` for the label.
        num_inference_steps, guidance_scale, mask_threshold, mask_granularity: of `SONAPipeline`.
        size: side of the images in pixels; None is the model's own.
        seed: root of all randomness; stop step, label and noise of an image follow from it and the image's key.
    """

    ood_labels: tuple[str, ...]
    prompt: str = "a photo of a {}"
    num_inference_steps: int = 50
    guidance_scale: float = 10.0
    mask_threshold: float = 0.2
    mask_granularity: str = "channel"
    size: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class PlannedOutlier:
    """What will be made of image `index`: file name, stop step, OOD label, and the seed of its noise."""

    index: int
    file_name: str
    stop_step: int
    ood_label: str
    seed: int


def load_pipeline(model: str, device: str | None = None) -> SONAPipeline:
    """The pipeline of a Stable Diffusion checkpoint (Hub id or folder; "tiny" is the embedded model) on a device.

    In half precision on an accelerator, in float32 on the CPU.
    """
    if model == "tiny":
        diffusers_logging.disable_progress_bar()
        transformers_logging.disable_progress_bar()
    device = device or (torch.accelerator.current_accelerator().type if torch.accelerator.is_available() else "cpu")
    dtype = torch.float32 if device == "cpu" else torch.float16
    pipe = SONAPipeline.from_pretrained(TINY_MODEL if model == "tiny" else model, dtype=dtype).to(device)
    pipe.unet.to(memory_format=torch.channels_last)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def plan_outliers(images: ImageSet, settings: GenerationSettings) -> list[PlannedOutlier]:
    """The outlier of every image, in the order of the images; each follows from (seed, image key) alone."""
    return [_planned(images, index, settings) for index in range(len(images))]


def _planned(images: ImageSet, index: int, settings: GenerationSettings) -> PlannedOutlier:
    key = images.keys[index]
    digest = hashlib.sha256(f"{settings.seed}/{key}".encode()).digest()
    step, label, seed = (int.from_bytes(digest[k : k + 8], "big") for k in (0, 8, 16))
    return PlannedOutlier(
        index=index,
        file_name=f"{_folder_name(images.label_name(index))}/{hashlib.sha256(key.encode()).hexdigest()[:16]}.png",
        stop_step=1 + step % settings.num_inference_steps,
        ood_label=settings.ood_labels[label % len(settings.ood_labels)],
        seed=seed >> 1,
    )


def _folder_name(class_name: str) -> str:
    """The class name, with %-escapes for what file systems forbid and words that `datasets` takes for splits."""
    risky = r'[\x00-\x1f%/\\:*?"<>|]|^\.|(?i:train|test|val|dev|eval)'
    return re.sub(risky, lambda found: f"%{ord(found[0][0]):02x}{found[0][1:]}", class_name)


def generate_outliers(
    images: ImageSet,
    pipe: SONAPipeline,
    output: str | Path,
    settings: GenerationSettings,
    *,
    reconstructions: bool = False,
    batch_size: int = 64,
) -> Path:
    """Write one outlier of each image to `output/outliers`, by source class, and go on where an earlier run stopped.

    Beside the images stand `outliers/metadata.jsonl` (file name, source key and class, OOD label, stop step, seed,
    content hash) and `settings.json`. With `reconstructions`, the VAE round trips of the images go to
    `output/reconstructions` under the same names. Images that cannot be read are recorded in `rejects.jsonl` and
    passed over. Files appear whole or not at all.

    Returns:
        The folder `output`.

    Raises:
        ValueError: the labels, the images, the model or an earlier run's settings do not go together.
    """
    output = Path(output)
    check_settings(images, settings)
    if pipe.vae.config.in_channels == 1 and not is_grey(images):
        raise ValueError("the images are coloured and this model makes grey ones: use a model for colour images")
    size, mode = _image_form(pipe, settings)
    pipe.preprocess_image(Image.new(mode, (size, size)))
    pipe.set_timesteps(settings.num_inference_steps, pipe.device)
    settle_settings(output / "settings.json", {"model": _model_name(pipe), **asdict(settings)})
    plan = plan_outliers(images, settings)
    table = JsonLines(output / OUTLIERS / "metadata.jsonl")
    rejects = JsonLines(output / "rejects.jsonl")
    refused = {row["source_key"] for row in rejects.rows}
    ready = {row["file_name"] for row in table.rows if (output / OUTLIERS / row["file_name"]).exists()}

    def is_done(item: PlannedOutlier) -> bool:
        again = reconstructions and not (output / RECONSTRUCTIONS / item.file_name).exists()
        return images.keys[item.index] in refused or (item.file_name in ready and not again)

    remaining = sorted((item for item in plan if not is_done(item)), key=lambda item: (-item.stop_step, item.file_name))
    table.keep(ready - {item.file_name for item in remaining})
    with Track("outliers", len(plan)) as track:
        track.advance(len(plan) - len(remaining))
        for start in range(0, len(remaining), batch_size):
            batch, sources = [], []
            for item in remaining[start : start + batch_size]:
                try:
                    sources.append(fit(images.image(item.index), size, mode))
                    batch.append(item)
                except (OSError, ValueError) as error:
                    rejects.append([{"source_key": images.keys[item.index], "reason": str(error)}])
            if batch and reconstructions:
                for item, image in zip(batch, reconstruct(pipe, sources)):
                    save_image(image, output / RECONSTRUCTIONS / item.file_name)
            if batch:
                outliers = make_outliers(pipe, sources, batch, [images.label_name(i.index) for i in batch], settings)
                hashes = [save_image(o, output / OUTLIERS / i.file_name) for o, i in zip(outliers, batch)]
                table.append([_row(images, item, digest) for item, digest in zip(batch, hashes)])
            track.advance(min(batch_size, len(remaining) - start))
    return output


def make_outliers(
    pipe: SONAPipeline,
    sources: Sequence[Image.Image],
    plan: Sequence[PlannedOutlier],
    classes: Sequence[str],
    settings: GenerationSettings,
) -> list[Image.Image]:
    """The planned outliers of `sources`, whose class names are `classes`, in one call of the pipeline."""
    return pipe(
        list(sources),
        id_prompt=[settings.prompt.format(name) for name in classes],
        ood_prompt=[settings.prompt.format(item.ood_label) for item in plan],
        stop_step=[item.stop_step for item in plan],
        num_inference_steps=settings.num_inference_steps,
        guidance_scale=settings.guidance_scale,
        mask_threshold=settings.mask_threshold,
        mask_granularity=settings.mask_granularity,
        generator=[torch.Generator().manual_seed(item.seed) for item in plan],
    ).images


@torch.no_grad()
def reconstruct(pipe: SONAPipeline, sources: Sequence[Image.Image]) -> list[Image.Image]:
    """The images through the pipeline's VAE and back, without noise."""
    pixels = pipe.preprocess_image(list(sources)).to(pipe.device, pipe.vae.dtype)
    decoded = pipe.vae.decode(pipe.vae.encode(pixels).latent_dist.mode()).sample
    return pipe.image_processor.postprocess(decoded, output_type="pil")


def _row(images: ImageSet, item: PlannedOutlier, digest: str) -> dict:
    return {
        "file_name": item.file_name,
        "source_key": images.keys[item.index],
        "source_class": images.label_name(item.index),
        "ood_label": item.ood_label,
        "stop_step": item.stop_step,
        "seed": item.seed,
        "sha256": digest,
    }


def _image_form(pipe: SONAPipeline, settings: GenerationSettings) -> tuple[int, str]:
    size = settings.size or pipe.unet.config.sample_size * pipe.vae_scale_factor
    return size, "L" if pipe.vae.config.in_channels == 1 else "RGB"


def _model_name(pipe: SONAPipeline) -> str:
    path = Path(pipe.name_or_path)
    return path.name if path.exists() else pipe.name_or_path


def check_settings(images: ImageSet, settings: GenerationSettings) -> None:
    """Raise ValueError if the images have no classes, or the settings cannot be used with them."""
    check_mask_options(settings.mask_threshold, settings.mask_granularity)
    if not math.isfinite(settings.guidance_scale):
        raise ValueError(f"the guidance scale is {settings.guidance_scale}: give a finite number")
    if not images.labels:
        raise ValueError("the images have no classes: put them into one sub-folder a class")
    if not settings.ood_labels:
        raise ValueError("no OOD labels: give at least one")
    names = {name.casefold(): name for name in images.classes}
    if clashes := [label for label in settings.ood_labels if label.casefold() in names]:
        raise ValueError(f"OOD labels {clashes} are ID classes as well: leave them out")
    if "{}" not in settings.prompt:
        raise ValueError(f"the prompt {settings.prompt!r} has no {{}} for the label")
