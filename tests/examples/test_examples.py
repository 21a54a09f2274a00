"""The example scripts, run as a reader would run them."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from sona_pipeline import RECIPES, GenerationSettings, SONAPipeline, load_detector, load_pipeline, open_images
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
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
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
    run("train_latent_diffusion.py", "--data", colours, "--output", tmp_path, *steps, "--sample-every", 4)
    assert (tmp_path / "samples" / "unet-000004.png").exists()
    pipe = SONAPipeline.from_pretrained(tmp_path)
    image = Image.open(next((colours / "lime").iterdir())).resize((16, 16))
    output = pipe(image, "a photo of a lime", "a photo of a red apple", stop_step=2, num_inference_steps=4)
    assert output.images[0].size == (16, 16)
    assert output.images[0].mode == "RGB"

    check = ("--model", tmp_path, "--train", colours, "--test", colours, "--count", 2, "--steps", 2)
    table = run("check_latent_diffusion.py", *check, "--judge-epochs", 1, "--sheet", tmp_path / "sheet.png")
    assert "autoencoder: mean absolute error" in table
    assert (tmp_path / "sheet.png").exists()


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
    command = [sys.executable, str(EXAMPLES / "train_detector.py"), "--recipe", "mine", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"})
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "--recipe is 'mine', but has to be one of" in done.stderr


def test_training_example_uses_nothing_but_exports():
    imports = re.findall(r"^(?:from|import) sona_pipeline\S*", (EXAMPLES / "train_detector.py").read_text(), re.M)
    assert imports == ["from sona_pipeline"]


def test_table_of_detectors_has_every_method_and_score(tmp_path, monkeypatch):
    script = load("benchmarks/detectors")
    for part in ("id_images", "real_outliers", "near_ood", "far_ood"):
        whole = getattr(sample, part)

        def cut(*arguments, whole=whole):
            found = whole(*arguments)
            if isinstance(found, dict):
                return {name: images.take(range(20)) for name, images in found.items()}
            return found.take(range(60))

        monkeypatch.setattr(sample, part, cut)
    monkeypatch.setitem(RECIPES, "small", replace(RECIPES["small"], epochs=1, batch_size=16))
    monkeypatch.setattr(script, "GenerationSettings", partial(GenerationSettings, num_inference_steps=4))
    script.main(tmp_path, seeds=1)
    table = pd.read_csv(tmp_path / "results" / "results.csv")
    assert set(table["method"]) == set(script.METHODS)
    assert set(table["score"]) >= {*SCORES, *POST_HOC} - {"she"}  # which needs a right answer in every class
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


def test_learned_tokenizer_round_trips_any_text():
    tokenizer = load("train_latent_diffusion").train_tokenizer(["a photo of a cat", "a photo of a dog"], 600, 32)
    assert tokenizer.decode(tokenizer("a photo of a cat").input_ids, skip_special_tokens=True) == "a photo of a cat"
    assert len(tokenizer("a photo of a cat").input_ids) == 7
    assert tokenizer.decode(tokenizer("zebra, ünï").input_ids, skip_special_tokens=True) == "zebra , ünï"
    assert len(tokenizer("x", padding="max_length").input_ids) == 32


def test_model_on_patches_is_loaded_where_its_code_is_trusted(colours, tmp_path):
    steps = ("--autoencoder", "patches", "--unet-steps", 2, "--batch-size", 4, "--resolution", 16)
    run("train_latent_diffusion.py", "--data", colours, "--output", tmp_path, *steps)
    image = Image.open(next((colours / "lime").iterdir())).resize((16, 16))
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        load_pipeline(str(tmp_path), "cpu")
    pipe = load_pipeline(str(tmp_path), "cpu", trust_remote_code=True)
    output = pipe(image, "a photo of a lime", "a photo of a red apple", stop_step=1, num_inference_steps=4)
    assert output.images[0].size == (16, 16)
