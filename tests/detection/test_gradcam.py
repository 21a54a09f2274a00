import importlib.util

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import ConvNextConfig, ResNetConfig, ViTConfig

from sona_pipeline.detection.detector import Detector
from sona_pipeline.detection.gradcam import draw_cam, score_cam
from sona_pipeline.detection.networks import Network

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))


def random_detector(network: str, size: int, **settings) -> Detector:
    torch.manual_seed(0)
    return Detector(["a", "b", "c"], network, size, **settings).eval()


def worked_by_hand(detector: Detector, maps: torch.Tensor, rest) -> np.ndarray:
    """Grad-CAM of the score of what `rest` makes of the last feature map `[1, D, h, w]`."""
    maps = maps.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(detector.ood_score(detector.network.head(rest(maps))).sum(), maps)
    coarse = torch.zeros(maps.shape[2:])
    for channel in range(maps.shape[1]):
        coarse += gradient[0, channel].mean() * maps[0, channel].detach()
    cam = bilinear(coarse.abs().numpy(), detector.image_size)
    return cam / cam.max()


def bilinear(values: np.ndarray, size: int) -> np.ndarray:
    """Scaled up, with pixels as squares whose value is that of their centre, one axis after the other."""
    at = (np.arange(size) + 0.5) * len(values) / size - 0.5
    for _ in range(2):
        values = np.stack([np.interp(at, np.arange(len(values)), column) for column in values.T])
    return values


def pooled(maps: torch.Tensor) -> torch.Tensor:
    return maps.mean(dim=(2, 3))


@pytest.mark.parametrize("score", ["energy", "msp"])
def test_map_is_grad_cam_worked_by_hand_for_our_networks(score):
    detector = random_detector("resnet8", 32, score=score)
    with torch.no_grad():
        maps = (detector.pixels([PHOTO]) - detector.mean) / detector.std
        for stage in detector.network.stages():
            maps = stage(maps)
    cam = score_cam(detector, PHOTO)
    assert cam.shape == (32, 32) and cam.max() == 1
    np.testing.assert_allclose(cam, worked_by_hand(detector, maps, pooled), atol=1e-4)


def test_map_is_grad_cam_worked_by_hand_for_networks_of_timm():
    detector = random_detector("timm:resnet10t", 64)
    body = detector.network.body
    with torch.no_grad():
        maps = body.forward_features((detector.pixels([PHOTO]) - detector.mean) / detector.std)
    assert maps.shape[2:] == (2, 2)
    np.testing.assert_allclose(score_cam(detector, PHOTO), worked_by_hand(detector, maps, pooled), atol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1]),
        ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, patch_size=2),
    ],
)
def test_map_is_grad_cam_worked_by_hand_for_networks_of_transformers(settings):
    detector = random_detector("transformers:tiny", 32, network_config=settings.to_dict())
    model = detector.network.body.model
    with torch.no_grad():
        base = getattr(model, model.base_model_prefix)
        maps = base((detector.pixels([PHOTO]) - detector.mean) / detector.std).last_hidden_state
    rest = base.layernorm if settings.model_type == "convnext" else nn.Identity()
    np.testing.assert_allclose(
        score_cam(detector, PHOTO), worked_by_hand(detector, maps, lambda maps: rest(pooled(maps))), atol=1e-4
    )


def with_view_of_a_corner(factor: float) -> Detector:
    """The brightness of the upper left quarter, on a grid of 8 x 8, times the factor is the OOD score."""

    class Corner(nn.Module):
        def forward(self, pixels):
            mask = torch.zeros_like(pixels)
            mask[:, :, :16, :16] = 1
            return pixels * mask

    detector = Detector(["a"], "resnet8", 32, mean=(0, 0, 0), std=(1, 1, 1), score="max_logit")
    body = nn.Sequential(Corner(), nn.AvgPool2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    detector.network = Network(body, nn.Linear(3, 1))
    nn.init.constant_(detector.network.head.weight, -factor)
    return detector.eval()


def test_map_is_hot_where_the_score_comes_from_be_it_for_ood_or_against_it():
    white = Image.new("RGB", (32, 32), "white")
    cam = score_cam(with_view_of_a_corner(+1), white)
    assert (cam[:14, :14] == 1).all()
    assert not cam[18:].any() and not cam[:, 18:].any()
    assert np.array_equal(score_cam(with_view_of_a_corner(-1), white), cam)
    assert not score_cam(with_view_of_a_corner(0), white).any()


def test_drawing_is_the_image_enlarged_and_coloured_only_where_the_map_is():
    grey = Image.new("RGB", (64, 32), (90, 90, 90))
    drawn = np.asarray(draw_cam(with_view_of_a_corner(+1), grey))
    assert drawn.shape == (224, 224, 3)
    assert (drawn[140:] == 90).all() and (drawn[:, 140:] == 90).all()
    corner = drawn[:80, :80].astype(int)
    assert (corner[..., 0] - corner[..., 2] > 30).all()  # red, the hot end
    assert draw_cam(random_detector("resnet8", 48), PHOTO).size == (240, 240)


def test_detector_stays_as_it_was():
    detector = random_detector("resnet8", 32).train()
    before = {name: value.clone() for name, value in detector.state_dict().items()}
    with torch.no_grad():
        cam = score_cam(detector, PHOTO)
    assert detector.training and all(p.grad is None and p.requires_grad for p in detector.parameters())
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())
    assert not any(module._forward_hooks for module in detector.modules())
    assert np.array_equal(cam, score_cam(detector.eval().requires_grad_(False), PHOTO))


def test_networks_without_feature_maps_are_refused():
    settings = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, patch_size=32
    )
    with pytest.raises(ValueError, match="no feature maps of more than one pixel"):
        score_cam(random_detector("transformers:tiny", 32, network_config=settings.to_dict()), PHOTO)


def test_missing_captum_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"sona-pipeline\[explain\]"):
        score_cam(random_detector("resnet8", 32), PHOTO)
