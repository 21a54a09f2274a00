"""What pretrained networks have done to their images: the same as in their own libraries, logit by logit."""

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from torch import nn
from transformers import AutoImageProcessor

from sona_pipeline.detection.detector import Detector, load_detector, save_detector
from sona_pipeline.detection.networks import preprocessing
from sona_pipeline.detection.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from sona_pipeline.training.settings import TrainingSettings
from sona_pipeline.training.start import new_detector

SIDE, CLASSES = 64, ["a", "b", "c", "d", "e"]
VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "image_size": SIDE}
STAGES = {"hidden_sizes": [8, 16], "depths": [1, 1]}
WINDOWS = {"embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "image_size": SIDE, "window_size": 4}
MOBILE = {"hidden_sizes": [16, 16, 16], "neck_hidden_sizes": [8, 8, 16, 16, 16, 16, 32], "image_size": SIDE}
EFFICIENT = {"width_coefficient": 0.25, "depth_coefficient": 0.25, "hidden_dim": 320, "image_size": SIDE}
KINDS = {
    "ViT": ("ViT", "ViTForImageClassification", "ViTImageProcessor", VIT),
    "DeiT": ("DeiT", "DeiTForImageClassification", "DeiTImageProcessor", VIT),
    "distilled DeiT": ("DeiT", "DeiTForImageClassificationWithTeacher", "DeiTImageProcessor", VIT),
    "BEiT": ("Beit", "BeitForImageClassification", "BeitImageProcessor", VIT),
    "DINOv2": ("Dinov2", "Dinov2ForImageClassification", "BitImageProcessor", VIT),
    "ResNet": ("ResNet", "ResNetForImageClassification", "ConvNextImageProcessor", STAGES | {"embedding_size": 8}),
    "ConvNeXt": ("ConvNext", "ConvNextForImageClassification", "ConvNextImageProcessor", STAGES | {"num_stages": 2}),
    "Swin": ("Swin", "SwinForImageClassification", "ViTImageProcessor", WINDOWS),
    "MobileViT": ("MobileViT", "MobileViTForImageClassification", "MobileViTImageProcessor", MOBILE),
    "EfficientNet": ("EfficientNet", "EfficientNetForImageClassification", "EfficientNetImageProcessor", EFFICIENT),
}


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8))


def save_model(folder, kind: str) -> nn.Module:
    """A small classifier of five classes in a folder; its weights are large enough for colours to count."""
    config, model, _, small = KINDS[kind]
    torch.manual_seed(0)
    made = getattr(transformers, model)(getattr(transformers, f"{config}Config")(**small, num_labels=5)).eval()
    with torch.no_grad():
        for value in made.parameters():
            value.add_(0.2 * torch.randn_like(value))
    made.save_pretrained(folder)
    return made


def as_detector(folder, model: nn.Module) -> Detector:
    """The detector that fine-tuning starts from, with the head that the model came with instead of a new one."""
    name = f"transformers:{folder}"
    settings = TrainingSettings(network=name, pretrained=True, image_size=SIDE, crop_pct=1.0)
    detector = new_detector(CLASSES, settings).eval()
    heads = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 5]
    with torch.no_grad():
        detector.network.head.weight.copy_(torch.cat([head.weight for head in heads], dim=1) / len(heads))
        detector.network.head.bias.copy_(sum(head.bias for head in heads) / len(heads))
    return detector


@torch.no_grad()
def logits_of_peer(folder, model: nn.Module, picture: Image.Image) -> torch.Tensor:
    processor = AutoImageProcessor.from_pretrained(folder)
    return model(**processor(picture, do_resize=False, do_center_crop=False, return_tensors="pt")).logits


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_the_library_s_own_processor_and_model(kind, picture, tmp_path):
    model = save_model(tmp_path, kind)
    getattr(transformers, KINDS[kind][2])().save_pretrained(tmp_path)
    detector = as_detector(tmp_path, model)
    theirs = logits_of_peer(tmp_path, model, picture)
    with torch.no_grad():
        ours = detector(detector.pixels([picture]))
    assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.std().item()) and theirs.std() > 0.01
    save_detector(detector, tmp_path / "detector")
    again = load_detector(tmp_path / "detector", "cpu")
    with torch.no_grad():
        assert torch.equal(again(again.pixels([picture])), ours)


OPTIONS = {
    "nothing": {},
    "no normalization": {"do_normalize": False},
    "no mean": {"do_normalize": False, "image_mean": None, "image_std": None},
    "one number": {"image_mean": 0.3, "image_std": 0.2},
    "no rescaling": {"do_rescale": False, "image_mean": [120.0, 110.0, 100.0], "image_std": [60.0, 50.0, 40.0]},
    "to [-1, 1]": {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_settings_of_a_processor_are_followed(options, picture, tmp_path):
    model = save_model(tmp_path, "ResNet")
    transformers.ViTImageProcessor(**options).save_pretrained(tmp_path)
    detector = as_detector(tmp_path, model)
    theirs = logits_of_peer(tmp_path, model, picture)
    with torch.no_grad():
        assert torch.allclose(detector(detector.pixels([picture])), theirs, rtol=1e-4, atol=1e-4 * theirs.std().item())


def test_normalization_has_the_digits_of_its_settings_and_blue_may_come_first(tmp_path):
    save_model(tmp_path, "ResNet")
    name = f"transformers:{tmp_path}"
    transformers.ViTImageProcessor(image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD).save_pretrained(tmp_path)
    assert preprocessing(name) == Preprocessing(IMAGENET_MEAN, IMAGENET_STD, "RGB", 224)
    transformers.MobileViTImageProcessor().save_pretrained(tmp_path)
    assert preprocessing(name) == Preprocessing((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "BGR", 256)
    with pytest.raises(ValueError, match="order of channels is 'GBR', but has to be one of"):
        Detector(CLASSES, channel_order="GBR")


def test_processors_that_cannot_be_followed_are_refused(tmp_path):
    save_model(tmp_path, "ResNet")
    name = f"transformers:{tmp_path}"
    with pytest.raises(FileNotFoundError, match=r"has no preprocessor_config\.json that can be had, .*: put it beside"):
        preprocessing(name)
    for processor in (transformers.ViTImageProcessor(image_mean=[0.5], image_std=[0.5, 0.5]),
                      transformers.Siglip2ImageProcessor()):  # fmt: skip
        processor.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match="does not make one picture of three channels: choose another network"):
            preprocessing(name)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"mean": (0.1,), "std": (0.3,)}, Preprocessing((0.1,) * 3, (0.3,) * 3, "RGB", 176, 0.875)),
        ({"mean": 0.1, "std": 0.3}, Preprocessing((0.1,) * 3, (0.3,) * 3, "RGB", 176, 0.875)),
        ({"mean": None, "std": None}, Preprocessing(IMAGENET_MEAN, IMAGENET_STD, "RGB", 176, 0.875)),
        ({"input_size": (1, 28, 28), "mean": (0.1,), "std": (0.3,)}, "for images of 1 channels"),
    ],
)
def test_timm_s_settings_are_followed(changes, expected, monkeypatch):
    config = replace(timm.get_pretrained_cfg("resnet10t"), **changes)
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda *args, **options: config)
    if isinstance(expected, Preprocessing):
        assert preprocessing("timm:resnet10t") == expected
    else:
        with pytest.raises(ValueError, match=expected):
            preprocessing("timm:resnet10t")
