"""What holds for every way to make outliers, and what each of them refuses."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sona_pipeline import sample
from sona_pipeline.common.assets import TINY_DETECTOR
from sona_pipeline.data.outlier_set import open_outlier_set, read_rows
from sona_pipeline.generation.checkpoint import load_pipeline
from sona_pipeline.generation.generate import PREPARED, generate_outliers
from sona_pipeline.generation.make import OutlierMaker
from sona_pipeline.generation.plan import plan_outliers
from sona_pipeline.generation.settings import GenerationSettings, OutputSettings
from sona_pipeline.generation.ways import WAYS
from sona_pipeline.generation.ways.base import latents_of

STEPS = 4
SETTINGS = GenerationSettings(("bag", "sandal"), num_inference_steps=STEPS)
WITH_DETECTOR = OutputSettings(classifier=str(TINY_DETECTOR), batch_size=4)
OF_PIXELS = ("cutpaste", "autoaug", "ascood")


@pytest.fixture(scope="module")
def images():
    """Two of each class."""
    whole = sample.id_images("train")
    return whole.take([k for k, label in enumerate(whole.labels) if whole.labels[:k].count(label) < 2])


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr("sona_pipeline.generation.ways.dream.EPOCHS", 2)


def begun(way, pipe, images):
    maker = OutlierMaker(pipe, plan_outliers(images, replace(SETTINGS, way=way)))
    maker.way.load(maker, str(TINY_DETECTOR))
    maker.way.begin(maker, maker.way.prepare(maker))
    return maker


def test_the_guide_has_a_row_for_every_way():
    guide = (Path(__file__).parents[3] / "examples" / "guides" / "outliers.md").read_text(encoding="utf-8")
    assert [name for name in WAYS if f"\n| `{name}` | " not in guide] == []


@pytest.mark.parametrize("way", WAYS)
def test_an_outlier_is_the_same_in_any_batch_and_costs_the_rows_that_are_said(way, pipe, images):
    maker, rows = begun(way, pipe, images), []
    hook = pipe.unet.register_forward_hook(lambda unet, inputs, output: rows.append(len(inputs[0])))
    places = np.arange(8)
    together = maker.denoise(maker.encode(maker.read(maker.plan.batch(places))))
    hook.remove()
    planned = [int(maker.plan.stop_steps[k]) for k in places]
    assert sum(rows) == sum(WAYS[way].rows(step, STEPS) for step in planned)
    for k in (0, 5):
        alone = maker.denoise(maker.encode(maker.read(maker.plan.batch(places[k : k + 1]))))
        assert torch.allclose(alone.outlier_latents[0], together.outlier_latents[k], atol=1e-3), way
        assert alone.items[0] == together.items[k]
    assert together.outlier_latents.dtype == pipe.latent_dtype
    changes = (together.outlier_latents - together.source_latents).flatten(1).abs().amax(dim=1)
    assert changes.median() > 0.05


@pytest.mark.parametrize("way", WAYS)
def test_a_set_of_any_way_is_opened_beside_its_images(way, pipe, images, tmp_path):
    settings = replace(SETTINGS, way=way)
    generate_outliers(images, pipe, tmp_path / way, settings, WITH_DETECTOR)
    pairs = open_outlier_set(tmp_path / way, images)
    assert len(pairs.outliers) == len(images) and pairs.outliers.image(3).size == (32, 32)
    rows = list(read_rows(tmp_path / way))
    labels = {row["ood_label"] for row in rows}
    assert labels <= ({"bag", "sandal"} if WAYS[way].uses_label else {""})
    if not WAYS[way].uses_stop_step and way != "oir":
        assert {row["stop_step"] for row in rows} == {STEPS}
    assert (tmp_path / way / PREPARED).exists() == WAYS[way].looks_at_all


@pytest.mark.parametrize("way", [name for name in WAYS if WAYS[name].looks_at_all])
def test_what_a_way_found_out_is_kept_for_the_next_run(way, pipe, images, tmp_path, monkeypatch):
    settings = replace(SETTINGS, way=way)
    generate_outliers(images, pipe, tmp_path / "whole", settings, WITH_DETECTOR)
    one_each = images.take([images.labels.index(label) for label in range(len(images.classes))])
    generate_outliers(one_each, pipe, tmp_path / "begun", settings, WITH_DETECTOR)
    kept = load_file(tmp_path / "whole" / PREPARED)
    (tmp_path / "begun" / PREPARED).write_bytes((tmp_path / "whole" / PREPARED).read_bytes())

    def never(self, maker):
        raise AssertionError("prepared twice")

    monkeypatch.setattr(WAYS[way], "prepare", never)
    for path in (tmp_path / "begun" / "outliers").rglob("*.png"):
        path.unlink()
    generate_outliers(images, pipe, tmp_path / "begun", settings, WITH_DETECTOR)
    found = [sorted(row["sha256"] for row in read_rows(tmp_path / name)) for name in ("whole", "begun")]
    assert found[0] == found[1] and kept


def test_ways_that_need_something_are_refused_without_it(pipe, images, tmp_path):
    with pytest.raises(ValueError, match="the way 'ascood' needs a classifier: give the folder of a detector"):
        generate_outliers(images, pipe, tmp_path / "set", replace(SETTINGS, way="ascood"))
    part = OutputSettings(part="1/2", batch_size=4)
    for way in ("dream", "autoaug"):
        with pytest.raises(ValueError, match=f"the way '{way}' looks at all images first: leave `part` out"):
            generate_outliers(images, pipe, tmp_path / "set", replace(SETTINGS, way=way), part)
    with pytest.raises(ValueError, match=r"`way` is 'magic', but has to be one of sona, "):
        generate_outliers(images, pipe, tmp_path / "set", replace(SETTINGS, way="magic"))
    others = replace(images, classes=tuple(f"other {name}" for name in images.classes))
    with pytest.raises(ValueError, match=r"does not know the classes \['other"):
        generate_outliers(others, pipe, tmp_path / "set", replace(SETTINGS, way="ascood"), WITH_DETECTOR)
    assert not (tmp_path / "set").exists()


def test_what_another_run_found_out_is_not_taken_up(pipe, images, tmp_path):
    """A run that was stopped before its first outlier leaves no settings that bind, and nothing prepared either."""
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / PREPARED).write_bytes(b"of another")
    generate_outliers(images, pipe, tmp_path / "set", replace(SETTINGS, way="autoaug"), WITH_DETECTOR)
    assert load_file(tmp_path / "set" / PREPARED)["others"].dtype == torch.uint8


@pytest.mark.parametrize("way", ["sega", "diffedit", "ledits", "text"])
def test_ways_edit_with_the_default_scheduler_and_few_steps(way, images):
    """With UniPC and 12 steps, DiffEdit's inversion has the levels of its edit, and SEGA's warm-up ends in time."""
    fast = load_pipeline("tiny", "cpu", dtype="float32", scheduler="unipc")
    fast.set_progress_bar_config(disable=True)
    plan = plan_outliers(images, replace(SETTINGS, way=way, num_inference_steps=12))
    maker = OutlierMaker(fast, plan)
    made = maker.denoise(maker.encode(maker.read(plan.batch(np.arange(4)))))
    labels = replace(plan.settings, ood_labels=("sandal", "bag"))
    other = OutlierMaker(fast, replace(plan, settings=labels))
    changed = other.denoise(other.encode(other.read(plan.batch(np.arange(4)))))
    gaps = (made.outlier_latents - changed.outlier_latents).flatten(1).square().mean(dim=1).sqrt()
    assert gaps.max() > 0.1  # the label has a say


def test_leditspp_goes_with_four_channels_only(images):
    colour = load_pipeline("cifar", "cpu", dtype="float32")
    with pytest.raises(ValueError, match="latents of 4 channels, and this model has 16: take 'ledits'"):
        WAYS["leditspp"](colour, replace(SETTINGS, way="leditspp"))
    with pytest.raises(ValueError, match="takes sides that 32 divides, and not 48: give another size"):
        WAYS["leditspp"](load_pipeline("tiny", "cpu"), replace(SETTINGS, way="leditspp", size=48))


@pytest.mark.parametrize("way", ["sega", "leditspp", "diffedit", "text", "oir"])
def test_pipelines_that_take_float32_go_with_a_unet_in_bfloat16(way, images):
    half = load_pipeline("tiny", "cpu", dtype="bfloat16", scheduler="ddim")
    half.set_progress_bar_config(disable=True)
    maker = begun(way, half, images)
    made = maker.denoise(maker.encode(maker.read(maker.plan.batch(np.arange(2)))))
    assert made.outlier_latents.dtype == torch.float32 and made.outlier_latents.isfinite().all()
    assert half.unet.dtype == torch.bfloat16 and not half.unet._forward_hooks


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_vae_that_overflows_at_the_outlier_goes_on_in_float32_or_costs_that_outlier(goes_on, images):
    """The VAE bears sources in float16, and not what is much brighter in one of them."""
    half = load_pipeline("tiny", "cpu", dtype="float32")
    half.vae.to(torch.float16).register_to_config(force_upcast=goes_on)

    def overflow(encoder, inputs, output):
        too_much = (inputs[0].flatten(1) == 1).all(dim=1) & (output.dtype == torch.float16)
        return torch.where(too_much.view(-1, 1, 1, 1), torch.inf, output)

    half.vae.encoder.register_forward_hook(overflow)
    maker = OutlierMaker(half, plan_outliers(images.take(range(4)), replace(SETTINGS, way="cutpaste")))

    def whitened(maker, work):
        pixels = work.pixels / 2 + 0.5
        return latents_of(
            maker, torch.stack([pixel if item.index else pixel.fill_(1) for pixel, item in zip(pixels, work.items)])
        )

    maker.way = whitened
    work = maker.denoise(maker.encode(maker.read(maker.plan.batch(np.arange(4)))))
    assert (half.vae.dtype == torch.float32) == goes_on
    assert [row["source_key"] for row in work.rejects] == [] if goes_on else [images.keys[0]]
    assert len(work.outlier_latents) == 4 - len(work.rejects) and work.outlier_latents.isfinite().all()
