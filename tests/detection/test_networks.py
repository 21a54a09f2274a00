import os
import subprocess

import pytest
import timm
import torch
import torchvision
from loopback_hub import LoopbackHub
from safetensors.torch import save_file
from torch import nn
from transformers import (
    CLIPConfig,
    HieraConfig,
    ImageGPTConfig,
    PPLCNetConfig,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)
from warm_python import fresh_python

from sona_pipeline.detection import networks
from sona_pipeline.detection.networks import build, preprocessing
from sona_pipeline.detection.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing


@pytest.fixture(scope="module")
def residual(tmp_path_factory) -> str:
    """A small residual network of transformers with seven classes, as a folder."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("residual")
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=7)
    ResNetForImageClassification(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def patches(tmp_path_factory) -> str:
    """A small vision transformer for images of 32 pixels, as a folder."""
    folder = tmp_path_factory.mktemp("patches")
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    ViTForImageClassification(ViTConfig(**small, image_size=32, patch_size=8)).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", [*networks.NETWORKS, "timm:resnet10t", "timm:vit_tiny_patch16_224"])
def test_head_on_features_gives_the_logits(name):
    network = build(name, 7, 32).eval()
    logits, features = network(torch.rand(2, 3, 32, 32))
    assert logits.shape == (2, 7)
    assert torch.equal(network.head(features), logits)


def test_transformers_networks_from_scratch_and_with_their_weights(residual, patches):
    for folder in (residual, patches):
        scratch, trained = (build(f"transformers:{folder}", 3, 32, pretrained=flag) for flag in (False, True))
        assert scratch(torch.rand(2, 3, 32, 32))[0].shape == trained(torch.rand(2, 3, 32, 32))[0].shape == (2, 3)
    own = ResNetForImageClassification.from_pretrained(residual).eval()
    trained = build(f"transformers:{residual}", 3, 32, pretrained=True).eval()
    pixels = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        pooled = own.resnet(pixels).pooler_output.flatten(1)
        assert torch.allclose(trained(pixels)[1], pooled, atol=1e-5)


def test_transformers_network_is_built_from_its_config_alone(residual):
    config = build(f"transformers:{residual}", 3, 32).config
    assert "resnet" in config["model_type"]
    again = build("transformers:not/there", 3, 32, config=config)
    assert again(torch.rand(1, 3, 32, 32))[1].shape == (1, 16)


def test_resnet18_is_torchvision_s():
    ours = build("resnet18", 5, 224).eval()
    theirs = torchvision.models.resnet18(num_classes=5).eval()
    weights = {name: value for name, value in ours.body.state_dict().items()}
    weights |= {f"fc.{name}": value for name, value in ours.head.state_dict().items()}
    theirs.load_state_dict(weights)
    pixels = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        assert torch.allclose(ours(pixels)[0], theirs(pixels), atol=1e-4)


def test_small_images_keep_their_size_in_the_stem_of_resnet18():
    stem = build("resnet18", 5, 32).stages()[0]
    assert stem(torch.rand(1, 3, 32, 32)).shape == (1, 64, 32, 32)
    assert build("resnet18", 5, 96).stages()[0](torch.rand(1, 3, 96, 96)).shape == (1, 64, 24, 24)


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_stages_one_after_the_other_are_the_body(name):
    network = build(name, 3, 32).eval()
    maps = pixels = torch.rand(2, 3, 32, 32)
    for stage in network.stages():
        maps = stage(maps)
    assert torch.allclose(maps.mean(dim=(2, 3)), network(pixels)[1], atol=1e-5)
    with pytest.raises(ValueError, match="are known for"):
        build("timm:resnet10t", 3, 32).stages()


def test_resnet8_and_resnet20_have_the_depth_of_their_names():
    for name, depth in (("resnet8", 8), ("resnet20", 20)):
        layers = [m for m in build(name, 10, 32).modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        shortcuts = [m for m in layers if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
        assert len(layers) - len(shortcuts) == depth


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet", {}, "no network named 'resnet'"),
        ("timm:resnet1", {}, "timm has no model named 'resnet1'; similar ones: .*resnet"),
        ("resnet18", {"pretrained": True}, "resnet18 has no pretrained weights"),
    ],
)
def test_unknown_networks_and_weights_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        build(name, 3, 32, **options)


FINE_TUNING = """
import torch
from sona_pipeline.detection.networks import build

network = build("timm:resnet10t", 3, 64, pretrained=True)
print(network.body.conv1[0].weight.flatten()[0].item())
for name in ("timm:resnet14t", "timm:gcvit_xxtiny"):
    try:
        build(name, 3, 64, pretrained=True)
    except ValueError as error:
        print(error)
"""


def test_weights_of_timm_are_taken_from_safetensors_and_never_from_a_pickle(tmp_path):
    with LoopbackHub() as hub:
        for name in ("resnet10t", "resnet14t"):
            model = timm.create_model(name)
            model.conv1[0].weight.data.fill_(0.25)
            repository = timm.get_pretrained_cfg(name).hf_hub_id
            (tmp_path / name).mkdir()
            if name == "resnet10t":
                save_file(model.state_dict(), tmp_path / name / "model.safetensors")
            torch.save(model.state_dict(), tmp_path / name / "pytorch_model.bin")
            hub.add(repository, tmp_path / name)
        environment = os.environ | hub.environment(tmp_path / "home")
        command = [fresh_python(), "-c", FINE_TUNING]
        said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
        assert not any("pytorch_model.bin" in request for request in hub.requests)
    refusal = "has no pretrained weights in safetensors, and a pickle is not loaded: choose another network"
    assert said == ["0.25", f"resnet14t {refusal}", f"gcvit_xxtiny {refusal}"]


def test_images_of_a_size_that_the_network_does_not_take_are_refused(patches):
    with pytest.raises(ValueError, match="does not take images of 20 pixels"):
        build(f"transformers:{patches}", 3, 20, pretrained=True)


def test_preprocessing_is_that_of_the_pretrained_weights():
    assert preprocessing("resnet18") == Preprocessing(IMAGENET_MEAN, IMAGENET_STD, "RGB")
    grey = (0.5, 0.5, 0.5)
    assert preprocessing("timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k") == Preprocessing(grey, grey, "RGB", 224, 0.9)


DISTILLED = ["timm:deit_tiny_distilled_patch16_224", "timm:levit_128s"]


@pytest.mark.parametrize("name", DISTILLED)
def test_timm_networks_with_two_heads_give_one_row_an_image(name):
    logits, features = build(name, 3, 224)(torch.rand(2, 3, 224, 224))
    assert logits.shape == (2, 3) and features.dim() == 2


@pytest.mark.parametrize(
    ("name", "size"),
    [("nest_tiny", 100), ("vit_tiny_patch16_dinov3_qkvb", 100), ("halonet_h1", 100), ("levit_128s", 100)],
)
def test_timm_networks_that_cannot_be_of_a_size_say_so(name, size):
    with pytest.raises(ValueError, match=rf"{name} .*images of {size} pixels: choose another image size .*\(.+\)$"):
        build(f"timm:{name}", 3, size)


@pytest.mark.parametrize("output", [lambda x: x, lambda x: (x, x)])
def test_timm_networks_that_give_no_row_an_image_are_refused(output, monkeypatch):
    class Maps(nn.Module):
        def forward(self, pixels):
            return output(pixels)

    monkeypatch.setattr(timm, "create_model", lambda *args, **options: Maps())
    with pytest.raises(ValueError, match=r"resnet10t gives features of .*, not one row an image: choose another"):
        build("timm:resnet10t", 3, 32)


def test_sizes_of_untrained_transformers_networks_are_set_wherever_they_stand(tmp_path):
    part = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    vision = part | {"image_size": 64, "patch_size": 8}
    hiera = HieraConfig(embed_dim=8, image_size=[64, 64], num_heads=[1, 2, 4, 8], depths=[1, 1, 1, 1])
    for name, config in (("clip", CLIPConfig(vision_config=vision, text_config=part)), ("hiera", hiera)):
        config.save_pretrained(tmp_path / name)
        assert build(f"transformers:{tmp_path / name}", 3, 96)(torch.rand(2, 3, 96, 96))[0].shape == (2, 3)


def test_transformers_networks_without_a_linear_head_are_refused(tmp_path):
    PPLCNetConfig(scale=0.25).save_pretrained(tmp_path / "lcnet")
    with pytest.raises(ValueError, match="lcnet does not end in a linear layer"):
        build(f"transformers:{tmp_path / 'lcnet'}", 3, 64)
    ImageGPTConfig(n_embd=16, n_layer=1, n_head=2).save_pretrained(tmp_path / "gpt")
    with pytest.raises(ValueError, match="gpt does not take images of 64 pixels"):
        build(f"transformers:{tmp_path / 'gpt'}", 3, 64)


@pytest.mark.parametrize("name", ["resnet8", "timm:resnet10t"])
def test_features_are_z_scored_within_each_image(name):
    torch.manual_seed(0)
    plain = build(name, 3, 32).eval()
    scaled = build(name, 3, 32, feature_scale=0.5).eval()
    scaled.load_state_dict(plain.state_dict())
    pixels = torch.rand(4, 3, 32, 32)
    features = plain.body(pixels)
    logits, found = scaled(pixels)
    expected = 0.5 * (features - features.mean(dim=1, keepdim=True)) / features.std(dim=1, keepdim=True)
    assert torch.allclose(found, expected, atol=1e-3) and torch.equal(logits, scaled.head(found))
    assert torch.equal(plain(pixels)[1], features)


def test_a_second_head_gives_other_logits_of_the_same_features():
    network = build("resnet8", 3, 32, heads=2)
    assert network.second_head.weight.shape == network.head.weight.shape == (3, 128)
    assert not torch.equal(network.second_head.weight, network.head.weight)
    assert build("resnet8", 3, 32).second_head is None
