"""Where a detector looks: Grad-CAM (Selvaraju et al. 2017) of its OOD score, as in figure 1 of the paper.

captum, which works it out, comes with `pip install "sona-pipeline[explain]"`.
"""

from __future__ import annotations

import copy
import importlib.util

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image
from torch import nn
from torch.nn import functional as F

from sona_pipeline.detection.detector import Detector

SHOWN = 224
"""Pixels that a drawn map has at least on a side."""


def score_cam(detector: Detector, image: Image.Image) -> np.ndarray:
    """The regions that the OOD score of an image comes from, `[S, S]` in [0, 1].

    With A_k the channels of the last feature map and s the detector's own score, the map is |sum_k w_k A_k| with w_k
    the mean of ds/dA_k over the positions; scaled up to the S x S pixels that the network sees (bilinear), and divided
    by its maximum, if that is not zero. It shows what speaks for OOD and what speaks against it alike. The positive
    part alone, as Selvaraju et al. have it for a class, says little here: features that respond to anything mostly
    lower the energy, and so the map of many an image is empty, OOD or not.

    Args:
        detector: stays as it is.
        image: of any size and mode; it is scaled and cropped to S x S pixels.

    Raises:
        ValueError: the network has no feature maps `[B, D, h, w]`, as a vision transformer has none; or captum is
            missing.
    """
    require_captum()
    from captum.attr import LayerGradCam

    frozen = copy.deepcopy(detector).eval()
    pixels = frozen.pixels([image]).to(frozen.device).requires_grad_()
    cam = LayerGradCam(lambda batch: frozen.scored(batch)[1], _last_map(frozen, pixels))
    coarse = cam.attribute(pixels)
    fine = F.interpolate(coarse.detach().abs(), size=pixels.shape[2:], mode="bilinear")[0, 0]
    return (fine / fine.max().clamp(min=torch.finfo(fine.dtype).tiny)).cpu().numpy()


def require_captum() -> None:
    """Raise ValueError if captum is missing."""
    if importlib.util.find_spec("captum") is None:
        raise ValueError(
            'maps of the score are worked out by captum, which is missing: pip install "sona-pipeline[explain]"'
        )


def draw_cam(detector: Detector, image: Image.Image) -> Image.Image:
    """The image as the detector sees it with `score_cam` in colour over it, enlarged to at least 224 pixels a side.

    Raises:
        ValueError: see `score_cam`.
    """
    cam = score_cam(detector, image)
    seen = Image.fromarray(detector.one(image).permute(1, 2, 0).numpy())
    side = seen.width * -(-SHOWN // seen.width)
    heat = Image.fromarray((255 * colormaps["turbo"](cam)[..., :3]).round().astype(np.uint8))
    strength = Image.fromarray((255 * 0.65 * cam).round().astype(np.uint8))
    seen = seen.resize((side, side), Image.Resampling.NEAREST)
    heat, strength = (layer.resize((side, side), Image.Resampling.BILINEAR) for layer in (heat, strength))
    return Image.composite(heat, seen, strength)


@torch.no_grad()
def _last_map(detector: Detector, pixels: torch.Tensor) -> nn.Module:
    """The module of the body that is the last to give a feature map; images are square, and so are feature maps."""
    found: list[nn.Module] = []

    def record(module: nn.Module, _: object, output: object) -> None:
        if not isinstance(output, torch.Tensor):
            return
        if output.dim() == 4 and output.shape[2] == output.shape[3] > 1:
            found.append(module)
        elif output.dim() == 3:  # tokens: from here on, what came before is no map of the features
            found.clear()

    hooks = [module.register_forward_hook(record) for module in detector.network.body.modules()]
    detector(pixels)
    for hook in hooks:
        hook.remove()
    if not found:
        raise ValueError(
            "this network has no feature maps of more than one pixel, and so no Grad-CAM: use a convolutional network, "
            "or larger images"
        )
    return found[-1]
