"""Judge a latent diffusion model: does it draw what it is asked for, and does its autoencoder keep images as they are?

    python examples/check_latent_diffusion.py --model tiny --train fashion-mnist/diffusion.parquet \
        --test fashion-mnist/judge.parquet

An independent classifier is trained on the real training images and tested on the real test images. It then judges
images drawn from pure noise, `--count` for each label. The autoencoder's error is taken on the real test images.
"""

from dataclasses import replace
from pathlib import Path

import cyclopts
import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from torchvision.transforms.v2.functional import pil_to_tensor
from torchvision.utils import save_image

from sona_pipeline import RECIPES, TINY_MODEL, Detector, ImageSet, fit, hold_out, open_images, train_detector


def mean_absolute_error(pipe: StableDiffusionPipeline, images: ImageSet) -> float:
    """Mean absolute error of VAE round trips, on [0, 1]."""
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    mode = "L" if pipe.vae.config.in_channels == 1 else "RGB"
    errors = []
    for start in range(0, len(images), 256):
        rows = range(start, min(start + 256, len(images)))
        pixels = torch.stack([pil_to_tensor(fit(images.image(i), side, mode)) for i in rows]).float() / 127.5 - 1
        with torch.no_grad():
            decoded = pipe.vae.decode(pipe.vae.encode(pixels).latent_dist.mode()).sample.clamp(-1, 1)
        errors.append((decoded - pixels).abs().flatten(1).mean(dim=1) / 2)
    return torch.cat(errors).mean().item()


def draw(pipe: StableDiffusionPipeline, label: str, count: int, steps: int, scale: float, seed: int) -> ImageSet:
    """`count` images of a label from pure noise."""
    pictures = pipe(
        [f"a photo of a {label}"] * count,
        num_inference_steps=steps,
        guidance_scale=scale,
        generator=torch.Generator().manual_seed(seed),
    ).images
    return ImageSet(tuple(map(str, range(count))), (), (), pictures.__getitem__)


def judged(judge: Detector, images: ImageSet) -> np.ndarray:
    """The class index that the judge gives each image."""
    said = judge.stream((images.image(i) for i in range(len(images))), batch_size=256)
    return np.array([judge.classes.index(one.label) for one in said])


def main(
    *,
    train: Path,
    test: Path,
    model: str = "tiny",
    count: int = 100,
    steps: int = 50,
    guidance_scale: float = 3.0,
    judge_images: int = 16000,
    judge_epochs: int = 5,
    sheet: Path | None = None,
    seed: int = 0,
) -> None:
    """Print the judge's accuracy on real images and on drawn ones, and the autoencoder's error.

    Args:
        train: Real labelled images that the judge learns from.
        test: Real labelled images that the judge and the autoencoder are tested on.
        model: Folder of the model; 'tiny' is the embedded one.
        count: Images to draw for each label.
        steps: DDIM steps.
        guidance_scale: Classifier-free guidance of the drawn images.
        judge_images: Training images of the judge.
        judge_epochs: Passes of the judge over them.
        sheet: Write a sheet of drawn images here.
        seed: Seed of judge and images.
    """
    real, tested = open_images(train), open_images(test)
    pipe = StableDiffusionPipeline.from_pretrained(TINY_MODEL if model == "tiny" else model)
    pipe.set_progress_bar_config(disable=True)
    print(
        f"autoencoder: mean absolute error {mean_absolute_error(pipe, tested):.4f} on [0, 1], {len(tested)} test images"
    )

    chosen = real.take(np.random.default_rng(seed).permutation(len(real))[:judge_images])
    chosen, held_out = hold_out(chosen, 0.02, seed)
    settings = replace(RECIPES["small"], epochs=judge_epochs, seed=seed)
    judge = train_detector(chosen, settings, validation=held_out, title="judge")
    truth = np.array([judge.classes.index(tested.label_name(i)) for i in range(len(tested))])
    correct = judged(judge, tested) == truth
    print(f"judge: {100 * correct.mean():.1f} % of {len(tested)} real test images right, trained on {len(chosen)}")

    hits, rows = [], []
    print(f"{'label':12s} {'real, % right':>14s} {'drawn, % right':>15s}")
    for number, label in enumerate(judge.classes):
        pictures = draw(pipe, label, count, steps, guidance_scale, seed)
        hits.append(judged(judge, pictures) == number)
        print(f"{label:12s} {100 * correct[truth == number].mean():14.1f} {100 * hits[-1].mean():15.1f}")
        rows += [pil_to_tensor(pictures.image(i)).float() / 255 for i in range(min(10, count))]
    print(f"{'all':12s} {100 * correct.mean():14.1f} {100 * np.mean(hits):15.1f}")
    if sheet:
        save_image(torch.stack(rows), sheet, nrow=min(10, count))


if __name__ == "__main__":
    cyclopts.App(default_command=main, version_flags=())()
