"""The example scripts, run as a reader would run them."""

import copy
import importlib.util
import io
import json
import os
import re
import subprocess
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from warm_python import package_python

from sona_pipeline import (
    RECIPES,
    GenerationSettings,
    OutputSettings,
    SONAPipeline,
    generate_outliers,
    load_detector,
    load_pipeline,
    open_images,
    open_outlier_set,
)
from sona_pipeline.data import sample
from sona_pipeline.detection.scores import SCORES
from sona_pipeline.evaluation.posthoc import POST_HOC

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str):
    """An example script as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(script: str, *arguments) -> str:
    command = [package_python(), str(EXAMPLES / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """A folder of coloured images of two classes."""
    root, rng = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    for name, tint in {"red apple": (200, 40, 40), "lime": (60, 200, 60)}.items():
        (root / name).mkdir()
        for number in range(40):
            pixels = np.clip(np.array(tint) + rng.normal(0, 25, (20, 16, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{number}.png")
    return root


def test_trained_model_loads_and_makes_outliers_of_its_images(colours, tmp_path):
    steps = ("--vae-steps", 4, "--unet-steps", 4, "--batch-size", 4, "--resolution", 16, "--vae-width", 8)
    run("train_latent_diffusion.py", "--data", colours, "--output", tmp_path, *steps, "--early-steps", 2)
    assert (tmp_path / "samples" / "unet-000004.png").exists()
    early, late = (SONAPipeline.from_pretrained(folder) for folder in (tmp_path / "early", tmp_path))
    assert not torch.equal(early.unet.conv_in.weight, late.unet.conv_in.weight)
    assert torch.equal(early.vae.encoder.conv_in.weight, late.vae.encoder.conv_in.weight)
    pipe = SONAPipeline.from_pretrained(tmp_path)
    image = Image.open(next((colours / "lime").iterdir())).resize((16, 16))
    output = pipe(image, "a photo of a lime", "a photo of a red apple", stop_step=2, num_inference_steps=4)
    assert output.images[0].size == (16, 16)
    assert output.images[0].mode == "RGB"

    check = ("--model", tmp_path, "--train", colours, "--test", colours, "--count", 2, "--steps", 2)
    table = run("check_latent_diffusion.py", *check, "--judge-epochs", 1, "--sheet", tmp_path / "sheet.png")
    assert "autoencoder: mean absolute error" in table
    assert (tmp_path / "sheet.png").exists()


def test_images_without_classes_train_no_model(colours, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        load("train_latent_diffusion").main(data=colours / "lime", output=tmp_path / "model")
    assert ended.value.code == 2
    assert "has no classes: put the images into one sub-folder a class" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


@pytest.fixture(scope="module")
def clothes(tmp_path_factory):
    """Folders `id` and `near` of some images of the bundled sample."""
    root = tmp_path_factory.mktemp("clothes")
    for name, images in (("id", sample.id_images("train")), ("near", sample.near_ood()["coat"])):
        for i in range(48):
            place = root / name / images.label_name(i)
            place.mkdir(parents=True, exist_ok=True)
            images.image(i).save(place / f"{i}.png")
    return root


def test_detector_is_trained_and_asked(clothes, tmp_path):
    sets = ("--data", clothes / "id", "--test", clothes / "id", "--near", clothes / "near")
    said = run("train_detector.py", *sets, "--epochs", 1, "--output", tmp_path)
    assert said.count("near-OOD  image:") == 5 and said.count("energy") == 10
    assert "near-OOD AUROC" in said
    detector = load_detector(tmp_path / "detector")
    first = detector(open_images(clothes / "id").image(0))
    assert f"ID        image: {first.label:12} energy {first.energy:6.2f}" in said


def test_recipe_that_is_not_there_is_a_message(tmp_path):
    command = [package_python(), str(EXAMPLES / "train_detector.py"), "--recipe", "mine", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"})
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert 'Invalid value "mine" for --recipe. Choose from: "imagenet200", "fine-grained", "small"' in done.stderr


def test_training_example_uses_nothing_but_exports():
    imports = re.findall(r"^(?:from|import) sona_pipeline\S*", (EXAMPLES / "train_detector.py").read_text(), re.M)
    assert imports == ["from sona_pipeline"]


@pytest.fixture
def cut_sample(monkeypatch) -> None:
    """The bundled sample with few images, and training of one epoch."""
    for part in ("id_images", "real_outliers", "near_ood", "far_ood"):
        whole = getattr(sample, part)

        def cut(*arguments, whole=whole):
            found = whole(*arguments)
            if isinstance(found, dict):
                return {name: images.take(range(20)) for name, images in found.items()}
            return found.take(range(60))

        monkeypatch.setattr(sample, part, cut)
    monkeypatch.setitem(RECIPES, "small", replace(RECIPES["small"], epochs=1, batch_size=16))


def test_table_of_searched_scores_has_every_score_twice(tmp_path, cut_sample):
    script = load("benchmarks/search")
    script.main(output=tmp_path, seeds=1)
    table = pd.read_csv(tmp_path / "search.csv", index_col="score")
    assert list(table.index) == list(script.SCORES) and table.shape[1] == 8
    same, other = (table.filter(like=part).to_numpy() for part in ("defaults", "searched"))
    assert (same[0] == other[0]).all() and (same[1:] != other[1:]).any()


def test_table_of_neighbours_has_every_number_that_is_kept(tmp_path, cut_sample):
    script = load("benchmarks/neighbours")
    script.main(output=tmp_path, seeds=2)
    table = pd.read_csv(tmp_path / "neighbours.csv", index_col=["method", "score"])
    scores = ["energy", *(f"energy+knn, {60 // n} kept, number {k}" for n, k in zip(script.SHARES, (50, 12, 2)))]
    assert [*table.index] == [(method, score) for method in ("SONA", "cross-entropy") for score in scores]
    means, spreads = table.filter(like="mean"), table.filter(like="std")
    assert means.shape == spreads.shape == (8, 2) and means.stack().between(0, 100).all()
    assert (spreads.loc["SONA"].iloc[:2] == 0).all(axis=None)  # nothing is drawn
    assert (spreads.loc["SONA"].iloc[2:] > 0).all(axis=None)


def test_tables_of_sizes_are_of_real_files_and_every_form(tmp_path, monkeypatch, cut_sample):
    script = load("benchmarks/sizes")
    monkeypatch.delitem(script.PHOTOS, "skimage")  # which is not installed for tests
    script.main(output=tmp_path, crops=6, images=24, seeds=1, epochs=1)
    sizes = pd.read_csv(tmp_path / "results" / "bytes.csv")
    assert list(sizes.columns) == ["photo", *script.FORMS] and set(sizes["photo"]) == {
        "china",
        "flower",
        "grace_hopper",
    }
    crop = script.crops(1)[0][1]
    small = crop.resize((224, 224), Image.Resampling.LANCZOS)
    webp = {"format": "WEBP", "lossless": True}
    for name, picture, options in (("PNG, 512 px", crop, {"format": "PNG"}), ("WebP, 224 px", small, webp)):
        content = io.BytesIO()
        picture.save(content, **options)
        assert sizes[name][0] == len(content.getvalue())
    text = (tmp_path / "results" / "results.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| JPEG 90, 224 px |")).split("|")
    assert float(row[5]) == pytest.approx(2 * 258_951 * sizes["JPEG 90, 224 px"].mean() / 1e9, abs=0.05)
    assert "WebP gave back all of 48 pictures" in text
    assert all(f"| {name} | " in text for name in script.SMALL_FORMS)
    assert json.loads((tmp_path / "results" / "run.json").read_text())["photos"] == dict.fromkeys(
        set(sizes["photo"]), 2
    )


def test_benchmark_keeps_pictures_as_the_job_does(tmp_path, monkeypatch, cut_sample):
    """What is made of a PNG set in memory is what `sona generate` writes, pixel by pixel."""
    script, images = load("benchmarks/sizes"), sample.id_images("train").take(range(6))
    pipe, settings = load_pipeline("tiny", "cpu"), GenerationSettings(sample.OOD_LABELS, num_inference_steps=2)
    pairs = open_outlier_set(generate_outliers(images, pipe, tmp_path / "png", settings), images)
    for k, (form, _) in enumerate(script.SMALL_FORMS.values()):
        writing = OutputSettings(save_size=form.size, codec=form.codec, quality=form.quality)
        written = open_outlier_set(generate_outliers(images, pipe, tmp_path / f"{k}", settings, writing), images)
        kept = script.as_kept(pairs, form)
        assert kept.form == written.form
        for ones, others in ((kept.outliers, written.outliers), (kept.reconstructions, written.reconstructions)):
            assert all((np.asarray(ones.image(i)) == np.asarray(others.image(i))).all() for i in range(6))


LEFT_OUT = {"she", "openmax", "mcd"}
"""Scores that need right answers in every class, or two heads."""


def test_table_of_detectors_has_every_score_by_all_kinds_of_outliers(tmp_path, monkeypatch, cut_sample):
    script = load("benchmarks/detectors")
    monkeypatch.setattr(script, "GenerationSettings", partial(GenerationSettings, num_inference_steps=4))
    assert all(replace(RECIPES["small"], **changes) for _, changes in script.METHODS.values())
    kinds = {kind: name for name, (kind, _) in script.METHODS.items()}
    monkeypatch.setattr(script, "METHODS", {name: script.METHODS[name] for name in kinds.values()})
    script.main(output=tmp_path, seeds=1)
    table = pd.read_csv(tmp_path / "results" / "results.csv")
    assert kinds.keys() == {None, "real", "sona"} and set(table["method"]) == set(kinds.values())
    assert set(table["score"]) >= {*SCORES, *POST_HOC} - LEFT_OUT
    assert table["mean"].between(-1e-6, 100 + 1e-6).all()
    assert json.loads((tmp_path / "results" / "run.json").read_text())["images"]["coat"] == 20


def test_resumed_training_equals_undisturbed_training(tmp_path):
    script = load("train_latent_diffusion")

    class InterruptionError(Exception):
        pass

    def train(output: Path, interrupt_at: int | None = None) -> torch.Tensor:
        torch.manual_seed(0)
        model = torch.nn.Linear(5, 3)
        stage = script.Stage("toy", Accelerator(), model, steps=8, lr=0.1, seed=0, output=output)
        stage.resume()

        def loss_of(generator):
            return stage.model(torch.randn(4, 5, generator=generator)).square().mean()

        def show(step):
            if step == interrupt_at:
                raise InterruptionError

        stage.run(loss_of, every=4, show=show)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    undisturbed = train(tmp_path / "one")
    with pytest.raises(InterruptionError):
        train(tmp_path / "two", interrupt_at=4)
    assert torch.equal(train(tmp_path / "two"), undisturbed)


@pytest.fixture(scope="module")
def denoising():
    """Loss of an untrained model, by kind of prediction and gamma; and a batch for it."""
    script = load("train_latent_diffusion")
    tokenizer = script.train_tokenizer(["a photo of a cat"], 600, 32)
    torch.manual_seed(0)
    unet, text_encoder = script.build_models(tokenizer, latent_channels=4, latent_size=4, unet_width=96)
    ids = tokenizer(["a photo of a cat"] * 3, padding="max_length", return_tensors="pt").input_ids
    batch = (torch.randn(3, 4, 4, 4), torch.randn(3, 4, 4, 4), torch.tensor([3, 400, 990]), ids)

    def make(prediction_type="epsilon", snr_gamma=0.0):
        return script.Denoising(unet, text_encoder, script.make_scheduler(prediction_type), snr_gamma)

    return make, batch, script


def errors_of_clean_latents(loss, clean, noise, timesteps, ids) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean squared errors `[B]` of the latents that follow from a prediction, and the signal-to-noise ratio."""
    alphas = loss.scheduler.alphas_cumprod[timesteps]
    a, b = alphas.sqrt()[:, None, None, None], (1 - alphas).sqrt()[:, None, None, None]
    noisy = a * clean + b * noise
    predicted = loss.unet(noisy, timesteps, loss.text_encoder(ids)[0]).sample
    is_velocity = loss.scheduler.config.prediction_type == "v_prediction"
    latents = a * noisy - b * predicted if is_velocity else (noisy - b * predicted) / a
    return (latents - clean).square().mean(dim=(1, 2, 3)), alphas / (1 - alphas)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_loss_weighs_errors_of_the_clean_latents(denoising, kind):
    make, batch, _ = denoising
    with torch.no_grad():
        errors, ratio = errors_of_clean_latents(make(kind), *batch)
        plain, weighted = make(kind)(*batch), make(kind, 5.0)(*batch)
    weights = ratio if kind == "epsilon" else ratio + 1
    torch.testing.assert_close(plain, (errors * weights).mean(), rtol=1e-3, atol=0)
    torch.testing.assert_close(weighted, (errors * ratio.clamp(max=5)).mean(), rtol=1e-3, atol=0)


def test_training_in_bfloat16_has_almost_the_same_loss(denoising):
    make, batch, script = denoising
    loss = make()
    exact = loss(*batch)
    loss.unet = copy.deepcopy(loss.unet)
    script.multiply_in_bfloat16(loss.unet)
    torch.testing.assert_close(loss(*batch), exact, rtol=1e-5, atol=0)
    with torch.autocast("cpu", torch.bfloat16):
        half = loss(*batch)
    assert half.dtype == torch.float32 and half != exact
    torch.testing.assert_close(half, exact, rtol=2e-2, atol=0)


def test_mirror_images_have_latents_of_their_own(colours):
    script = load("train_latent_diffusion")
    images = script.Images(open_images(colours), 16, "RGB")
    loader = torch.utils.data.DataLoader(images, batch_size=16)
    vae = script.PatchAutoencoder()
    mean, _ = script.encode_all(vae, loader, "cpu", flip=True)
    expected = vae.encode(images[5][0].flip(-1)[None]).latent_dist.mean
    torch.testing.assert_close(mean[5].float(), expected[0], rtol=0, atol=2e-3)


def test_learned_tokenizer_round_trips_any_text():
    tokenizer = load("train_latent_diffusion").train_tokenizer(["a photo of a cat", "a photo of a dog"], 600, 32)
    assert tokenizer.decode(tokenizer("a photo of a cat").input_ids, skip_special_tokens=True) == "a photo of a cat"
    assert len(tokenizer("a photo of a cat").input_ids) == 7
    assert tokenizer.decode(tokenizer("zebra, ünï").input_ids, skip_special_tokens=True) == "zebra , ünï"
    assert len(tokenizer("x", padding="max_length").input_ids) == 32


def test_model_on_patches_is_loaded_where_its_code_is_trusted(colours, tmp_path):
    steps = ("--autoencoder", "patches", "--unet-steps", 2, "--batch-size", 4, "--resolution", 16)
    recipe = ("--flips", "--prediction-type", "v_prediction", "--snr-gamma", 5, "--bfloat16", "--components", 16)
    run("train_latent_diffusion.py", "--data", colours, "--output", tmp_path, *steps, *recipe, "--whitening", 0.5)
    image = Image.open(next((colours / "lime").iterdir())).resize((16, 16))
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        load_pipeline(str(tmp_path), "cpu")
    pipe = load_pipeline(str(tmp_path), "cpu", trust_remote_code=True)
    assert pipe.scheduler.config.prediction_type == "v_prediction" and pipe.unet.config.in_channels == 16
    output = pipe(image, "a photo of a lime", "a photo of a red apple", stop_step=1, num_inference_steps=4)
    assert output.images[0].size == (16, 16)
