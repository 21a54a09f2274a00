import errno
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from sona_pipeline.data import sample
from sona_pipeline.data.image_set import ImageSet
from sona_pipeline.data.imaging import fit
from sona_pipeline.data.remote import UnreachableError
from sona_pipeline.generation.checkpoint import load_pipeline
from sona_pipeline.generation.make import OutlierMaker, PromptCache, image_form
from sona_pipeline.generation.plan import plan_outliers
from sona_pipeline.generation.settings import GenerationSettings
from sona_pipeline.pipelines.families.stable_diffusion import SONAPipeline

SETTINGS = GenerationSettings(ood_labels=("bag", "sandal"), num_inference_steps=4, prompt="an image of a {}")


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline("tiny", "cpu", dtype="float32")


@pytest.fixture(scope="module")
def images():
    return sample.id_images("train").take(range(6))


def make(pipe, images, settings=SETTINGS, **options):
    """The work of all images as one batch, through every stage."""
    plan = plan_outliers(images, settings)
    maker = OutlierMaker(pipe, plan, **options)
    return maker, maker.decode(maker.denoise(maker.encode(maker.read(plan.batches(len(plan))[0]))))


def test_outlier_is_what_one_call_of_the_pipeline_gives_for_its_image_alone(pipe, images):
    _, work = make(pipe, images)
    for item, _, outlier, _ in work.made:
        alone = pipe(
            images.image(item.index),
            f"an image of a {images.label_name(item.index)}",
            f"an image of a {item.ood_label}",
            stop_step=item.stop_step,
            num_inference_steps=4,
            generator=torch.Generator().manual_seed(item.seed),
        ).images[0]
        difference = np.asarray(alone, dtype=int) - np.asarray(outlier, dtype=int)
        assert np.abs(difference).max() <= 1


def test_reconstruction_is_the_vae_there_and_back(pipe, images):
    _, work = make(pipe, images)
    for item, _, outlier, back in work.made:
        pixels = torch.tensor(np.asarray(images.image(item.index))).float()[None, None] / 127.5 - 1
        with torch.no_grad():
            latents = pipe.vae.encode(pixels).latent_dist.sample(torch.Generator().manual_seed(item.seed))
            expected = ((pipe.vae.decode(latents).sample[0, 0] + 1) * 127.5).clip(0, 255).numpy()
        assert np.abs(np.asarray(back, dtype=float) - expected).max() <= 0.6
        assert (back.size, back.mode) == (outlier.size, outlier.mode)


def test_reconstructions_are_left_out_on_request(pipe, images):
    maker, work = make(pipe, images, reconstructions=False)
    assert [other for *_, other in work.made] == [None] * 6
    assert [sample.reconstruction for sample in maker.finish(work).samples] == [None] * 6


def test_row_tells_where_an_outlier_comes_from(pipe, images):
    maker, work = make(pipe, images, replace(SETTINGS, id_labels={"shirt": "blouse"}))
    plan = plan_outliers(images, SETTINGS)
    for sample_, (item, checks, outlier, _) in zip(maker.finish(work).samples, work.made):
        row = sample_.row
        assert row["source_key"] == images.keys[item.index]
        assert row["source_class"] == images.label_name(item.index)
        assert row["id_label"] == {"shirt": "blouse"}.get(row["source_class"], row["source_class"])
        assert (row["stop_step"], row["ood_label"]) == (plan[item.index].stop_step, plan[item.index].ood_label)
        assert row["contrast"] == pytest.approx(np.asarray(outlier).std() / 255, abs=0.01)
        assert row.items() >= checks.items()


def test_words_for_classes_reach_the_prompt(pipe, images):
    _, plain = make(pipe, images)
    _, other = make(pipe, images, replace(SETTINGS, id_labels=dict.fromkeys(images.classes, "trouser")))
    differs = [(np.asarray(a) != np.asarray(b)).any() for (*_, a, _), (*_, b, _) in zip(plain.made, other.made)]
    assert any(differs)


def test_outliers_that_break_a_bound_are_rejected_with_the_reason(pipe, images):
    _, free = make(pipe, images)
    middle = float(np.median([checks["latent_distance"] for _, checks, *_ in free.made]))
    _, bound = make(pipe, images, replace(SETTINGS, reject=(f"latent_distance<{middle}",)))
    kept = {item.index for item, checks, *_ in free.made if not checks["latent_distance"] < middle}
    assert {item.index for item, *_ in bound.made} == kept
    assert len(bound.rejects) == 6 - len(kept) > 0
    distance = {images.keys[item.index]: checks["latent_distance"] for item, checks, *_ in free.made}
    for row in bound.rejects:
        assert row["reason"] == f"latent_distance {distance[row['source_key']]:.4g} < {middle:g}"


def test_classifier_is_asked_for_the_source_class(pipe, images):
    asked = []

    def classifier(pictures, classes):
        asked.extend(classes)
        return [{"source_confidence": 0.25 if name == "shirt" else 0.75} for name in classes]

    settings = replace(SETTINGS, reject=("source_confidence>0.5",))
    _, work = make(pipe, images, settings, classifier=classifier)
    assert sorted(asked) == sorted(images.label_name(i) for i in range(6))
    assert {images.label_name(item.index) for item, *_ in work.made} <= {"shirt"}
    assert len(work.made) + len(work.rejects) == 6


def test_unreadable_image_is_rejected_or_raised(pipe, images):
    def opened(index):
        if index == 2:
            raise OSError("torn")
        return images.image(index)

    torn = ImageSet(images.keys, images.labels, images.classes, opened)
    _, work = make(pipe, torn)
    assert [(row["source_key"], row["reason"]) for row in work.rejects] == [(images.keys[2], "torn")]
    assert len(work.made) == 5
    with pytest.raises(OSError, match="torn"):
        make(pipe, torn, strict=True)


@pytest.mark.parametrize("error", [OSError(errno.EIO, "of the disk"), UnreachableError("of the network")])
def test_error_of_disk_or_network_is_no_fault_of_the_image(pipe, images, error):
    def opened(index):
        raise error

    with pytest.raises(OSError, match=r"of the (disk|network)"):
        make(pipe, ImageSet(images.keys, images.labels, images.classes, opened))


class BadLatents:
    """A pipeline whose latents become NaN for the images with the stop steps `bad`."""

    def __init__(self, pipe, bad):
        self.pipe, self.bad = pipe, bad

    def __getattr__(self, name):
        return getattr(self.pipe, name)

    def __call__(self, latents, **options):
        if self.bad & set(options["stop_step"]):
            raise FloatingPointError("The latents of image 0 became NaN")
        return self.pipe(latents, **options)


def test_image_whose_latents_become_nan_is_rejected_and_the_others_are_made(pipe, images):
    _, good = make(pipe, images)
    steps = {item.stop_step for item, *_ in good.made}
    assert len(steps) > 1
    bad = {min(steps)}
    _, work = make(BadLatents(pipe, bad), images)
    assert {row["reason"] for row in work.rejects} == {"The latents of image 0 became NaN"}
    assert {item.stop_step for item, *_ in work.made} == steps - bad
    expected = {item.index: np.asarray(outlier, dtype=int) for item, _, outlier, _ in good.made}
    for item, _, outlier, _ in work.made:
        assert np.abs(np.asarray(outlier, dtype=int) - expected[item.index]).max() <= 1
    with pytest.raises(FloatingPointError):
        make(BadLatents(pipe, bad), images, strict=True)
    with pytest.raises(FloatingPointError):
        make(BadLatents(pipe, steps), images)


def test_batch_without_a_readable_image_makes_nothing(pipe, images):
    def opened(index):
        raise OSError("torn")

    _, work = make(pipe, ImageSet(images.keys, images.labels, images.classes, opened))
    assert (work.made, len(work.rejects)) == ([], 6)


def test_each_prompt_is_encoded_once(pipe):
    seen = []
    hook = pipe.text_encoder.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(len(args[0] if args else kwargs["input_ids"])), with_kwargs=True
    )
    try:
        prompts = PromptCache(pipe)
        first = prompts(["a", "b", "a"])["prompt_embeds"]
        again = prompts(["b", "c"])["prompt_embeds"]
    finally:
        hook.remove()
    assert seen == [2, 1]
    assert torch.equal(first[0], first[2])
    assert torch.equal(first[1], again[0])
    assert not torch.equal(first[0], first[1])


def test_prompt_cache_forgets_what_was_not_used_for_longest(pipe):
    prompts = PromptCache(pipe, room=3)
    whole = prompts(["a", "b", "c"])["prompt_embeds"]
    prompts(["b"])
    prompts(["d"])
    assert set(prompts._kept) == {"b", "c", "d"}
    prompts(["b", "e"])
    assert set(prompts._kept) == {"b", "d", "e"}
    assert torch.allclose(prompts(["a"])["prompt_embeds"][0], whole[0], atol=1e-5)


def test_colour_model_takes_images_of_every_mode(tiny_components):
    colour = SONAPipeline(**tiny_components)
    colour.set_progress_bar_config(disable=True)
    pictures = [Image.new("L", (40, 30), 90).convert(m) for m in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "F")]
    pictures.append(Image.fromarray(np.full((30, 40), 30000, dtype=np.uint16)))
    images = ImageSet(tuple(map(str, range(10))), (0,) * 10, ("thing",), pictures.__getitem__)
    _, work = make(colour, images, replace(SETTINGS, num_inference_steps=2))
    assert not work.rejects
    assert {(outlier.size, outlier.mode) for *_, outlier, _ in work.made} == {((32, 32), "RGB")}


def test_images_come_to_size_by_the_resize_mode(pipe):
    wide = Image.new("L", (64, 32), 0)
    wide.paste(255, (16, 0, 48, 32))
    images = ImageSet(("wide",), (0,), ("thing",), lambda _: wide)
    for mode in ("crop", "pad", "squash"):
        plan = plan_outliers(images, replace(SETTINGS, resize_mode=mode))
        work = OutlierMaker(pipe, plan).read(plan.batches(1)[0])
        assert (np.asarray(work.images[0]) == np.asarray(fit(wide, 32, "L", mode))).all()


def test_size_and_mode_are_the_models(pipe, tiny_components):
    assert image_form(pipe, None) == (32, "L")
    assert image_form(pipe, 64) == (64, "L")
    assert image_form(SONAPipeline(**tiny_components), None) == (32, "RGB")


class BadPixels(BadLatents):
    """A pipeline whose VAE overflows for the outliers of some places in the batch, or refuses to decode them."""

    def __init__(self, pipe, bad, refuses):
        super().__init__(pipe, bad)
        self.refuses, self.seen = refuses, []

    def __call__(self, latents, **options):
        return self.pipe(latents, **options)

    def decode(self, latents, output_type):
        marks = [place for place, known in enumerate(self.seen) for one in latents if torch.equal(one, known)]
        if not marks:
            self.seen.extend(latents)
            marks = list(range(len(latents)))
        bad = [k for k, mark in enumerate(marks) if mark in self.bad]
        if bad and self.refuses:
            raise FloatingPointError("decoded pixels are NaN")
        pixels, flags = self.pipe.decode(latents, output_type)
        pixels[bad] = float("nan")
        return pixels, flags


@pytest.mark.parametrize("refuses", [False, True])
def test_outliers_whose_pixels_overflow_are_rejected_for_this_time(pipe, images, refuses):
    _, work = make(BadPixels(pipe, {1, 4}, refuses), images, reconstructions=False)
    assert len(work.made) == 4
    assert [(row["reason"], row["may_pass"]) for row in work.rejects] == [
        ("the decoded pixels are NaN or infinite", True)
    ] * 2
    with pytest.raises(FloatingPointError, match=r"pixels are NaN or infinite in torch\.float32: use another --dtype"):
        make(BadPixels(pipe, set(range(6)), refuses), images, reconstructions=False)
    with pytest.raises(FloatingPointError, match="pixels are NaN"):
        make(BadPixels(pipe, {1}, refuses), images, reconstructions=False, strict=True)


def test_sources_whose_latents_overflow_are_rejected_for_this_time(pipe, images):
    class Overflowing(BadLatents):
        def __call__(self, latents, **options):
            return self.pipe(latents, **options)

        def encode_image(self, pixels, *arguments):
            latents = self.pipe.encode_image(pixels, *arguments)
            latents[pixels.mean(dim=(1, 2, 3)) > self.bad] = float("inf")
            return latents

    brightness = sorted(np.asarray(images.image(i)).mean() / 127.5 - 1 for i in range(6))
    _, work = make(Overflowing(pipe, brightness[-1] - 1e-4), images)
    assert len(work.made) == 5
    assert [row["may_pass"] for row in work.rejects] == [True]
    assert "the VAE makes NaN or infinite latents in torch.float32" in work.rejects[0]["reason"]
