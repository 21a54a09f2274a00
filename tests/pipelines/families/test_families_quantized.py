"""A denoiser that diffusers quantizes with torchao as it loads it, in each family.

torchao is not among the dependencies of the tests, since every process that finds it imports it: `.ci/run` installs it
for this file alone, when the others have run.
"""

import pytest
import torch
from diffusers import PipelineQuantizationConfig, TorchAoConfig
from test_families_in_the_job import ALL
from test_families_with_options import outliers, pipeline

torchao = pytest.importorskip("torchao.quantization")


@pytest.mark.parametrize("name", ALL)
def test_a_quantized_denoiser_is_loaded(name, tmp_path):
    pipe = pipeline(name)
    pipe.save_pretrained(tmp_path)
    part = next(name for name, part in pipe.components.items() if part is pipe.denoiser)
    config = PipelineQuantizationConfig(quant_mapping={part: TorchAoConfig(torchao.Int8WeightOnlyConfig())})
    other = ALL[name].from_pretrained(tmp_path, quantization_config=config, dtype=torch.float32)
    other.set_progress_bar_config(disable=True)
    weights = other.denoiser.named_parameters()
    quantized = {key: value.dequantize() for key, value in weights if isinstance(value, torchao.Int8Tensor)}
    assert len(quantized) > 3
    pipe.denoiser.load_state_dict(quantized, strict=False)
    torch.testing.assert_close(outliers(other), outliers(pipe), atol=1e-4, rtol=0)
