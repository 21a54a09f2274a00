"""Weights that others trained, taken up by name of their order, and fine-tuned."""

from pathlib import Path

import pytest
import timm
import torch
from benchmark_modules import modules_of

from sona_pipeline import load_detector

FOLDER = Path(__file__).parents[2] / "examples" / "benchmarks" / "cifar10"


@pytest.fixture(scope="module")
def pretrained():
    with modules_of(FOLDER) as modules:
        yield modules.pretrained


def test_weights_of_other_names_make_the_features_of_the_network(pretrained, tmp_path):
    torch.manual_seed(3)
    network = timm.create_model("tf_efficientnet_lite0").eval()
    renamed = {f"_{name}": tensor for name, tensor in network.state_dict().items() if "classifier" not in name}
    torch.save(renamed | {"_fc.weight": torch.zeros(1000, 1280), "_fc.bias": torch.zeros(1000)}, tmp_path / "w.pth")
    pretrained.write_start(tmp_path / "w.pth", ["cat", "dog"], tmp_path / "start")
    detector = load_detector(tmp_path / "start")
    pixels = torch.rand(2, 3, 224, 224)
    with torch.no_grad():
        expected = network.forward_head(network.forward_features(2 * pixels - 1), pre_logits=True)
        found = detector(pixels, with_features=True)
    torch.testing.assert_close(found[1], expected, rtol=1e-4, atol=1e-5)
    assert found[0].shape == (2, 2)


def test_other_weights_are_refused(pretrained, tmp_path):
    torch.save({"_conv.weight": torch.zeros(3)}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="has not the tensors of timm:tf_efficientnet_lite0"):
        pretrained.write_start(tmp_path / "w.pth", ["cat", "dog"], tmp_path / "start")
