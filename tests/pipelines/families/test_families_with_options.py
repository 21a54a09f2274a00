"""What diffusers can do with its models, on each family: outliers are the same, or those of the weights as they are."""

import diffusers
import pytest
import torch
from safetensors.torch import save_file
from test_families_in_the_job import ALL, SIDE, parts_of

from sona_pipeline import load_pipeline

CPU = torch.device("cpu")


def pipeline(name):
    pipe = ALL[name](**parts_of(name))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def outliers(pipe):
    """Of two images with stop steps of their own; without guidance that a rounding of masks could turn over."""
    images = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    settings = {"stop_step": [1, 3], "num_inference_steps": 3, "guidance_scale": 1.0, "output_type": "pt"}
    return pipe(images, ["a cat", "a barn"], "a dog", generator=generators, **settings).images


def offload_blocks(pipe):
    pipe.enable_group_offload(CPU, CPU, offload_type="block_level", num_blocks_per_group=1)


def offload_leaves(pipe):
    pipe.enable_group_offload(CPU, CPU, offload_type="leaf_level")


def attend_otherwise(pipe):
    pipe.denoiser.set_attention_backend("_native_math")


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("change", [offload_blocks, offload_leaves, attend_otherwise])
def test_outliers_are_the_same(change, name):
    pipe, other = pipeline(name), pipeline(name)
    change(other)
    torch.testing.assert_close(outliers(other), outliers(pipe), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["flux", "stable_diffusion_3", "z_image"])
def test_outliers_of_compiled_transformers_are_the_same(name):
    pipe, other = pipeline(name), pipeline(name)
    other.transformer = torch.compile(other.transformer, backend="eager")
    torch.testing.assert_close(outliers(other), outliers(pipe), atol=1e-5, rtol=0)
    torch.compiler.reset()


@pytest.mark.parametrize("name", ALL)
def test_weights_kept_in_eight_bits_are_computed_with_as_they_are_rounded(name):
    pipe, other = pipeline(name), pipeline(name)
    plain = outliers(pipe)
    other.denoiser.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    rounded = other.denoiser.state_dict()
    assert torch.float8_e4m3fn in {value.dtype for value in rounded.values()}
    pipe.denoiser.load_state_dict({key: value.float() for key, value in rounded.items()})
    found = outliers(other)
    torch.testing.assert_close(found, outliers(pipe), atol=1e-5, rtol=0)
    assert not torch.allclose(found, plain, atol=1e-4)


IN_ONE_FILE = [name for name in ALL if hasattr(ALL[name], "from_single_file") and "transformer" in parts_of(name)]


@pytest.mark.parametrize("name", IN_ONE_FILE)
def test_a_transformer_in_one_file(name, tmp_path):
    """As such files are shared: without the other parts, which diffusers wants to be given."""
    pipe, path = pipeline(name), tmp_path / "transformer.safetensors"
    getattr(diffusers, ALL[name].checkpoints[0])(**pipe.components).save_pretrained(tmp_path / "model")
    save_file({key: value.contiguous() for key, value in pipe.transformer.state_dict().items()}, path)
    others = {part: value for part, value in pipe.components.items() if part != "transformer"}
    other = ALL[name].from_single_file(path, config=str(tmp_path / "model"), **others)
    other.set_progress_bar_config(disable=True)
    torch.testing.assert_close(outliers(other), outliers(pipe), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"transformer.safetensors has no weights of \w+: name the folder") as caught:
        load_pipeline(str(path), "cpu", model_config=str(tmp_path / "model"))
    assert "\n" not in str(caught.value)
