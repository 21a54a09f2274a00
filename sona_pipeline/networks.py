"""Networks of the detector: each takes images `[B, 3, H, W]` and gives logits `[B, classes]`."""

from collections.abc import Callable

import torch
from torch import nn
from torchvision.models import resnet18 as torchvision_resnet18
from torchvision.models.resnet import BasicBlock


def resnet8(classes: int, image_size: int) -> nn.Module:
    """One block in each of three stages of 32, 64 and 128 channels, after a stem of stride 2; 0.3 M parameters.

    For images of about 32 pixels on a machine without a GPU: a third of the work of ResNet-20.
    """
    return _residual_network(classes, widths=(32, 64, 128), blocks=1, stem_stride=2)


def resnet20(classes: int, image_size: int) -> nn.Module:
    """The ResNet-20 of He et al. (2016, section 4.2) for images of about 32 pixels; 0.27 M parameters."""
    return _residual_network(classes, widths=(16, 32, 64), blocks=3, stem_stride=1)


def _residual_network(classes: int, widths: tuple[int, ...], blocks: int, stem_stride: int) -> nn.Module:
    stem = nn.Conv2d(3, widths[0], 3, stem_stride, padding=1, bias=False)
    layers, width = [stem, nn.BatchNorm2d(widths[0]), nn.ReLU(inplace=True)], widths[0]
    for stage, planes in enumerate(widths):
        for number in range(blocks):
            stride = 2 if number == 0 and stage > 0 else 1
            shortcut = None
            if stride == 2:
                shortcut = nn.Sequential(nn.Conv2d(width, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))
            layers.append(BasicBlock(width, planes, stride, shortcut))
            width = planes
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def resnet18(classes: int, image_size: int) -> nn.Module:
    """torchvision's ResNet-18, untrained; up to 64 pixels with a 3 x 3 stem and no max-pooling, as OpenOOD has it."""
    network = torchvision_resnet18(num_classes=classes)
    if image_size <= 64:
        network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        network.maxpool = nn.Identity()
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    return network


NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {
    "resnet8": resnet8,
    "resnet20": resnet20,
    "resnet18": resnet18,
}


def build(name: str, classes: int, image_size: int) -> nn.Module:
    """The untrained network `name` of `NETWORKS`."""
    if name not in NETWORKS:
        raise ValueError(f"no network named {name!r}: choose one of {sorted(NETWORKS)}")
    return NETWORKS[name](classes, image_size).to(memory_format=torch.channels_last)
