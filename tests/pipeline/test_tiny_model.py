"""The embedded model: that it is what it says, and good enough to be used."""

from dataclasses import replace

import numpy as np
import torch
from diffusers import StableDiffusionPipeline

from sona_pipeline import TINY_MODEL, SONAPipeline
from sona_pipeline.data import sample
from sona_pipeline.training.settings import RECIPES
from sona_pipeline.training.train import train_detector

KNOWN = [*sample.id_images("train").classes, *sample.OOD_LABELS]


def test_size_and_format():
    files = [p for p in TINY_MODEL.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 12e6
    assert {p.suffix for p in files} <= {".json", ".safetensors", ".txt", ".md"}


@torch.no_grad()
def test_round_trips_lose_less_than_5_percent():
    vae = SONAPipeline.from_pretrained(TINY_MODEL).vae.float()
    images = sample.id_images("test").take(range(300))
    pixels = torch.stack([torch.tensor(np.asarray(images.image(i)))[None] / 127.5 - 1 for i in range(300)])
    back = vae.decode(vae.encode(pixels).latent_dist.mode()).sample.clamp(-1, 1)
    assert float((back - pixels).abs().mean()) / 2 < 0.05


def test_tokenizer_spells_any_text_and_knows_its_labels():
    tokenizer = SONAPipeline.from_pretrained(TINY_MODEL).tokenizer
    for text in [*KNOWN, "grasshopper", "ünï côde", "日本"]:
        ids = tokenizer(text, truncation=True, max_length=tokenizer.model_max_length).input_ids
        assert tokenizer.unk_token_id not in ids[1:-1]
    assert all(len(tokenizer(f"a photo of a {label}").input_ids) <= 10 for label in KNOWN)


def test_draws_the_id_classes_it_is_asked_for():
    """A classifier of the sample's six classes sees the prompted class; the full check is an example script."""
    pipe = StableDiffusionPipeline.from_pretrained(TINY_MODEL)
    pipe.set_progress_bar_config(disable=True)
    images = sample.id_images("train")
    judge = train_detector(images, replace(RECIPES["small"], epochs=6), validation=sample.id_images("validation"))
    drawn = pipe(
        [f"a photo of a {name}" for name in images.classes for _ in range(16)],
        num_inference_steps=20,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(0),
    ).images
    found = [d.label for d in judge(drawn)]
    assert np.mean([a == b for a, b in zip(found, np.repeat(images.classes, 16))]) > 0.8
