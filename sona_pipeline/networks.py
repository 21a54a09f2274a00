"""Networks of the detector: each takes images `[B, 3, H, W]` and gives logits `[B, classes]`."""

from collections.abc import Callable

import torch
from torch import nn
from torchvision.models import resnet18 as torchvision_resnet18
from torchvision.models.resnet import BasicBlock


def resnet20(classes: int, image_size: int) -> nn.Module:
    """The ResNet-20 of He et al. (2016, section 4.2) for images of about 32 pixels; 0.27 M parameters."""
    blocks, width = [], 16
    for planes in (16, 32, 64):
        for number in range(3):
            stride = 2 if number == 0 and planes > 16 else 1
            shortcut = None
            if stride == 2:
                shortcut = nn.Sequential(nn.Conv2d(width, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))
            blocks.append(BasicBlock(width, planes, stride, shortcut))
            width = planes
    stem = [nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True)]
    network = nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))
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


NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {"resnet20": resnet20, "resnet18": resnet18}


def build(name: str, classes: int, image_size: int) -> nn.Module:
    """The untrained network `name` of `NETWORKS`."""
    if name not in NETWORKS:
        raise ValueError(f"no network named {name!r}: choose one of {sorted(NETWORKS)}")
    return NETWORKS[name](classes, image_size).to(memory_format=torch.channels_last)
