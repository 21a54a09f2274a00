"""Classifiers of CIFAR-10 that others trained, as judges of generated images; only table "kept" starts from one."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision.transforms.v2.functional import pil_to_tensor

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 500


class Block(nn.Module):
    """Two convolutions and a shortcut without weights (He et al. 2016, option A)."""

    def __init__(self, width: int, planes: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, planes, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(planes), nn.BatchNorm2d(planes)
        self.stride, self.more = stride, planes - width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more // 2, self.more // 2))
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + shortcut)


class Judge(nn.Module):
    """A ResNet for CIFAR-10 of depth 6 n + 2.

    Args:
        path: weights, such as `resnet56-4bfd9763.th`; nothing but tensors is unpickled.
    """

    def __init__(self, path: Path):
        super().__init__()
        state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
        state = {name.removeprefix("module."): value for name, value in state.items()}
        blocks = len({name.split(".")[1] for name in state if name.startswith("layer1.")})
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        widths = (16, 16, 32, 64)
        for stage in (1, 2, 3):
            first = Block(widths[stage - 1], widths[stage], 1 if stage == 1 else 2)
            rest = (Block(widths[stage], widths[stage], 1) for _ in range(blocks - 1))
            setattr(self, f"layer{stage}", nn.Sequential(first, *rest))
        self.linear = nn.Linear(64, len(CLASSES))
        self.load_state_dict(state)
        self.eval().requires_grad_(False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Logits of pixels `[B, 3, 32, 32]` in [0, 1]."""
        return self.linear(self.maps(pixels)[-1].mean(dim=(2, 3)))

    def maps(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Feature maps of the three stages, of pixels `[B, 3, 32, 32]` in [0, 1]."""
        mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
        found = [F.relu(self.bn1(self.conv1((pixels - mean) / std)))]
        for stage in (self.layer1, self.layer2, self.layer3):
            found.append(stage(found[-1]))
        return found[1:]

    def names(self, images: Sequence[Image.Image]) -> list[str]:
        """The class of each image."""
        logits = [self(batch) for batch in _batches(images)]
        return [CLASSES[k] for k in torch.cat(logits).argmax(dim=1).tolist()]

    def distances(self, some: Sequence[Image.Image], others: Sequence[Image.Image]) -> torch.Tensor:
        """Perceptual distance `[N]` of pairs, after LPIPS (Zhang et al. 2018) with this network and without weights.

        Squared difference of the feature maps, normalized over the channels; mean over places, mean over stages.
        """
        found = []
        for one, other in zip(_batches(some), _batches(others)):
            pairs = zip(self.maps(one), self.maps(other))
            stages = [(F.normalize(a) - F.normalize(b)).square().sum(dim=1).mean(dim=(1, 2)) for a, b in pairs]
            found.append(torch.stack(stages).mean(dim=0))
        return torch.cat(found)


def _batches(images: Sequence[Image.Image]):
    for start in range(0, len(images), BATCH):
        yield torch.stack([pil_to_tensor(i.convert("RGB")) for i in images[start : start + BATCH]]).float() / 255
