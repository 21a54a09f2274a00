from dataclasses import replace

import numpy as np
import torch

from sona_pipeline import sample
from sona_pipeline.generation.make import OutlierMaker
from sona_pipeline.generation.plan import plan_outliers
from sona_pipeline.generation.settings import GenerationSettings
from sona_pipeline.generation.ways import ledits

SETTINGS = GenerationSettings(("bag",), num_inference_steps=6, way="ledits")


def denoised(pipe, **changes):
    images = sample.id_images("train").take(range(0, 60, 10))
    maker = OutlierMaker(pipe, plan_outliers(images, replace(SETTINGS, **changes)))
    return maker, maker.denoise(maker.encode(maker.read(maker.plan.batch(np.arange(6)))))


def test_an_edit_with_nothing_edited_gives_the_source_back(pipe, monkeypatch):
    """The stored noises lead back to the source where the way down is guided as the way up was."""
    monkeypatch.setattr(ledits, "TARGET_SCALE", ledits.SOURCE_SCALE)
    monkeypatch.setattr(ledits, "CONCEPT_SCALE", 0.0)
    monkeypatch.setattr(OutlierMaker, "meanings_of", lambda maker, items: maker.prompts(maker.prompts_of(items)[0]))
    _, work = denoised(pipe)
    assert len({item.stop_step for item in work.items}) > 2
    torch.testing.assert_close(work.outlier_latents, work.source_latents, rtol=1e-3, atol=1e-3)


def test_an_edit_changes_the_source(pipe):
    _, work = denoised(pipe)
    changes = (work.outlier_latents - work.source_latents).flatten(1).square().mean(dim=1).sqrt()
    assert changes.min() > 0.1


def test_the_id_meaning_is_taken_away_in_the_twentieth_where_it_is_strongest(pipe):
    maker, _ = denoised(pipe)
    plain, own = (torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    momentum = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    found, kept = maker.way._removed(plain, own, momentum)
    psi = own - plain
    for image in range(2):
        for channel in range(4):
            strongest = psi[image, channel].abs().flatten().argsort(descending=True)[:3]  # a twentieth of 64
            expected = 0.5 * momentum[image, channel].flatten()
            expected[strongest] -= psi[image, channel].flatten()[strongest]
            torch.testing.assert_close(found[image, channel].flatten(), expected)
            beside = 0.6 * momentum[image, channel].flatten() + 0.4 * expected
            torch.testing.assert_close(kept[image, channel].flatten(), beside)


def test_the_concept_waits_for_the_steps_of_its_warm_up(pipe, monkeypatch):
    """Counted from the first step of each image: with one, only an image of a single step keeps its ID meaning."""
    _, some = denoised(pipe)
    monkeypatch.setattr(ledits, "CONCEPT_SCALE", 0.0)
    _, off = denoised(pipe)
    moved = (some.outlier_latents - off.outlier_latents).flatten(1).abs().amax(dim=1) > 1e-4
    assert moved.tolist() == [item.stop_step > 1 for item in off.items]
