"""Every family in the job of a data set: a random checkpoint of diffusers is found, loaded, and makes outliers."""

from importlib import import_module

import diffusers
import pytest
import torch
from pictures import write_sample
from tiny_pipelines import build

from sona_pipeline import generate_outliers, load_pipeline, open_images, pipeline_encoder, read_rows
from sona_pipeline.data.outlier_set import read_settings
from sona_pipeline.generation.families import all_families
from sona_pipeline.generation.settings import GenerationSettings, OutputSettings

ALL = {family.__module__.rpartition(".")[2]: family for family in all_families()}
SIDE = 32


def parts_of(name: str) -> dict:
    """The parts of a random model of a family, from where its own tests have them."""
    if name == "stable_diffusion":
        return build() | {"safety_checker": None, "feature_extractor": None}
    module = import_module(f"test_{name}")
    made = module.components if hasattr(module, "components") else module.parts
    return made(dtype=torch.float32)


@pytest.mark.parametrize("name", ALL)
def test_a_set_is_made_from_a_checkpoint_of_diffusers(name, tmp_path):
    family = ALL[name]
    getattr(diffusers, family.checkpoints[0])(**parts_of(name)).save_pretrained(tmp_path / "model")
    pipe = load_pipeline(str(tmp_path / "model"), "cpu", dtype="float32")
    assert type(pipe) is family
    texts = ["a cat", "an old boat", "a cat"]
    vectors = pipeline_encoder(pipe)(texts)
    assert vectors.dim() == 2 and torch.equal(vectors[0], vectors[2]) and not torch.allclose(vectors[0], vectors[1])

    write_sample(tmp_path / "photos", 6)
    images = open_images(tmp_path / "photos")
    settings = GenerationSettings(("bag", "sandal"), num_inference_steps=3, label_choice="far", prompt="{}", size=SIDE)
    for some, batch_size in ((images.take(range(4)), 3), (images, 6)):
        generate_outliers(some, pipe, tmp_path / "set", settings, OutputSettings(batch_size=batch_size))
    assert len(list(read_rows(tmp_path / "set"))) == len(images)
    assert read_settings(tmp_path / "set")["notes"]["pipeline"] == family.__name__


@pytest.mark.parametrize("name", [name for name in ALL if name != "stable_diffusion"])
def test_half_models_of_each_family_load(name, tmp_path):
    getattr(diffusers, ALL[name].checkpoints[0])(**parts_of(name)).save_pretrained(tmp_path / "model")
    pipe = load_pipeline(str(tmp_path / "model"), "cpu", dtype="bfloat16")
    assert (pipe.denoiser.dtype, pipe.vae.dtype) == (torch.bfloat16, torch.float32)
    made = pipe(
        torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)),
        "a cat",
        "a dog",
        stop_step=1,
        num_inference_steps=2,
        output_type="latent",
    )
    assert made.images.dtype == torch.float32 and made.images.isfinite().all()
