"""A small network and images by formula, without random numbers: what OpenOOD's code was run on as well."""

from collections import OrderedDict

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock

from sona_pipeline.detection.detector import Detector
from sona_pipeline.detection.networks import Network

CLASSES = 4
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def waves(count: int, start: int, unknown: bool = False) -> torch.Tensor:
    """Images `[count, 3, 16, 16]` in [0, 1]: waves whose direction tells the class, in turn, and whose phase varies."""
    number = torch.arange(start, start + count, dtype=torch.float64)[:, None, None, None]
    colour = torch.arange(3, dtype=torch.float64)[:, None, None]
    row, column = (torch.arange(16, dtype=torch.float64).view(shape) for shape in ((1, 16, 1), (1, 1, 16)))
    turn = (number % CLASSES + (0.5 if unknown else 0)) * torch.pi / CLASSES
    length = 0.9 + 0.05 * torch.sin(7 * number) + (0.25 if unknown else 0)
    wave = torch.sin(length * (row * turn.cos() + column * turn.sin()) + 1.7 * number + 0.6 * colour)
    grain = torch.sin(12.9898 * row + 78.233 * column + 37.719 * colour + 4.1 * number)
    return (0.5 + 0.3 * wave + 0.2 * grain).float()


def labels(count: int) -> torch.Tensor:
    return torch.arange(count) % CLASSES


TRAIN, VALIDATION, KNOWN = waves(240, 0), waves(80, 1000), waves(6, 2000)
OOD_VALIDATION, UNKNOWN = waves(60, 3000, unknown=True), waves(6, 4000, unknown=True)


@torch.no_grad()
def detector() -> Detector:
    """Stem, two stages of one block and 12 features; weights are sines, and the head has the class means."""
    layers = OrderedDict(
        conv1=nn.Conv2d(3, 6, 3, padding=1, bias=False),
        bn1=nn.BatchNorm2d(6),
        relu=nn.ReLU(inplace=True),
        layer1=nn.Sequential(BasicBlock(6, 8, 2, nn.Sequential(nn.Conv2d(6, 8, 1, 2, bias=False), nn.BatchNorm2d(8)))),
        layer2=nn.Sequential(
            BasicBlock(8, 12, 2, nn.Sequential(nn.Conv2d(8, 12, 1, 2, bias=False), nn.BatchNorm2d(12)))
        ),
        avgpool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
    )
    made = Detector([f"direction {n}" for n in range(CLASSES)], image_size=16, mean=MEAN, std=STD)
    made.network = Network(nn.Sequential(layers), nn.Linear(12, CLASSES))
    for place, module in enumerate(m for m in made.network.modules() if isinstance(m, nn.Conv2d)):
        values = torch.sin(1.3 * (place + 1) * torch.arange(module.weight.numel(), dtype=torch.float64) + place)
        module.weight.copy_(values.view(module.weight.shape) / module.weight[0].numel() ** 0.5)
    for norm in (m for m in made.network.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.momentum = None  # plain mean
    made.train()
    made(TRAIN)
    made.eval()
    features = made.features(TRAIN).double()
    means = torch.stack([features[labels(240) == label].mean(dim=0) for label in range(CLASSES)])
    weight = 25 * (means - features.mean(dim=0)) + torch.sin(torch.arange(48, dtype=torch.float64)).view(CLASSES, 12)
    made.network.head.weight.copy_(weight)
    made.network.head.bias.copy_(-(weight * (means + features.mean(dim=0))).sum(dim=1) / 2)
    return made
