"""Networks of the detector: a body that takes images `[B, 3, H, W]` to features `[B, D]`, and a linear head."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import nn
from torchvision.models import resnet18 as torchvision_resnet18
from torchvision.models.resnet import BasicBlock

from sona_pipeline.detection import foreign
from sona_pipeline.detection.heads import Body, Picked, cut, feature_width
from sona_pipeline.detection.preprocessing import Preprocessing, of_timm, of_transformers

SMALL = 64
"""Images up to this side get the stem for small images."""
TIMM, TRANSFORMERS = "timm:", "transformers:"
OWN = "own"
"""The name of a network that is a module of the user's."""


class Network(nn.Module):
    """Body and linear head: images `[B, 3, H, W]` to logits `[B, C]` and penultimate features `[B, D]`.

    Args:
        body: gives features; for the networks of this file a `Sequential` that ends in pooling and flattening.
        head: gives logits.
        config: what the body is built from again, if its name is not enough.

    Attributes:
        feature_scale: standard deviation that the features of each image are given, with mean 0; None leaves them.
        second_head: another linear head, of a network that was trained with two; or None.
    """

    def __init__(self, body: nn.Module, head: nn.Linear, config: dict | None = None):
        super().__init__()
        self.body, self.head, self.config = body, head, config
        self.feature_scale: float | None = None
        self.second_head: nn.Linear | None = None

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits `[B, C]` and features `[B, D]` of normalized images `[B, 3, H, W]`."""
        features = self.scaled(self.body(pixels))
        return self.head(features), features

    def scaled(self, features: torch.Tensor) -> torch.Tensor:
        """Features `[B, D]` as the head takes them: by default as they are, otherwise z-scored within each image."""
        if self.feature_scale is None:
            return features
        mean, deviation = features.mean(dim=1, keepdim=True), features.std(dim=1, keepdim=True)
        return self.feature_scale * (features - mean) / (deviation + 1e-6)

    def own_module(self) -> nn.Module | None:
        """A copy of the user's module that the network was cut from, with its head again; None if there is none."""
        if not isinstance(self.body, Body) or not isinstance(self.body.outputs, Picked) or self.config is None:
            return None
        module = copy.deepcopy(self.body.model)
        module.set_submodule(self.config["head"], copy.deepcopy(self.head))
        return module

    def stages(self) -> list[nn.Module]:
        """Stem and stages of the body, each of which takes the feature maps of the one before.

        Raises:
            ValueError: the body is not one of this file.
        """
        children = dict(self.body.named_children())
        if not isinstance(self.body, nn.Sequential):
            raise ValueError(f"the stages of a network are known for {sorted(NETWORKS)} only")
        names = list(children)
        stem = nn.Sequential(*(children[name] for name in names[: names.index("layer1")]))
        return [stem, *(module for name, module in children.items() if name.startswith("layer"))]


def resnet8(classes: int, image_size: int) -> Network:
    """One block in each of three stages of 32, 64 and 128 channels, after a stem of stride 2; 0.3 M parameters.

    For images of about 32 pixels on a machine without a GPU: a third of the work of ResNet-20.
    """
    return _residual_network(classes, widths=(32, 64, 128), blocks=1, stem_stride=2)


def resnet20(classes: int, image_size: int) -> Network:
    """The ResNet-20 of He et al. (2016, section 4.2) for images of about 32 pixels; 0.27 M parameters."""
    return _residual_network(classes, widths=(16, 32, 64), blocks=3, stem_stride=1)


def _residual_network(classes: int, widths: tuple[int, ...], blocks: int, stem_stride: int) -> Network:
    width = widths[0]
    layers = OrderedDict(
        conv1=nn.Conv2d(3, width, 3, stem_stride, padding=1, bias=False),
        bn1=nn.BatchNorm2d(width),
        relu=nn.ReLU(inplace=True),
    )
    for stage, planes in enumerate(widths):
        stride = 1 if stage == 0 else 2
        shortcut = nn.Sequential(nn.Conv2d(width, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))
        first = BasicBlock(width, planes, stride, None if stage == 0 else shortcut)
        layers[f"layer{stage + 1}"] = nn.Sequential(first, *(BasicBlock(planes, planes) for _ in range(blocks - 1)))
        width = planes
    body = nn.Sequential(layers | OrderedDict(avgpool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten()))
    for module in body.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return Network(body, nn.Linear(width, classes))


def resnet18(classes: int, image_size: int) -> Network:
    """ResNet-18 of torchvision, untrained; up to 64 pixels with a 3 x 3 stem and no max-pooling, as OpenOOD has it."""
    network = torchvision_resnet18(num_classes=classes)
    layers = OrderedDict(network.named_children())
    head = layers.pop("fc")
    if image_size <= SMALL:
        layers["conv1"] = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        layers.pop("maxpool")
        nn.init.kaiming_normal_(layers["conv1"].weight, mode="fan_out", nonlinearity="relu")
    return Network(nn.Sequential(layers | OrderedDict(flatten=nn.Flatten())), head)


NETWORKS: dict[str, Callable[[int, int], Network]] = {
    "resnet8": resnet8,
    "resnet20": resnet20,
    "resnet18": resnet18,
}


def build(
    name: str,
    classes: int,
    image_size: int,
    *,
    module: nn.Module | None = None,
    config: dict | None = None,
    channels: int = 3,
    pretrained: bool = False,
    feature_scale: float | None = None,
    heads: int = 1,
) -> Network:
    """The network `name` with a new head for `classes` classes.

    Args:
        name: of `NETWORKS`; or "timm:NAME" for any image model of timm; or "transformers:NAME" for any image
            classifier of transformers, by Hub id or folder; or "own" for `module`.
        classes: number of classes.
        image_size: side of the images in pixels.
        module: a classifier of the user's, which is copied, and cut before the layer that `config` names.
        config: of the transformers model, which is otherwise looked up by its name; or of the module.
        channels: of the images.
        pretrained: load the weights that come with the name into the body. A transformers model then keeps its own
            image size, since its position embeddings are of no other.
        feature_scale: see `Network`.
        heads: 1, or 2.

    Raises:
        ValueError: there is no such network, it has no pretrained weights, or does not take images of this size.
    """
    if name.startswith(TIMM):
        name = name.removeprefix(TIMM)
        body = foreign.timm_model(name, image_size, pretrained=pretrained, channels=channels)
        network = Network(body, nn.Linear(feature_width(body, name, image_size, channels), classes))
    elif name.startswith(TRANSFORMERS):
        name = name.removeprefix(TRANSFORMERS)
        body, config = foreign.transformers_body(name, image_size, config, pretrained)
        network = Network(body, nn.Linear(feature_width(body, name, image_size, channels), classes), config)
    elif name == OWN:
        network = _own(module, config or {}, classes)
    elif name not in NETWORKS:
        raise ValueError(f"no network named {name!r}: choose one of {sorted(NETWORKS)}, timm:NAME or transformers:NAME")
    elif pretrained:
        raise ValueError(
            f"{name} has no pretrained weights: use a timm: or transformers: network, or train from scratch"
        )
    else:
        network = NETWORKS[name](classes, image_size)
    network.feature_scale = feature_scale
    if heads == 2:
        network.second_head = nn.Linear(network.head.in_features, classes)
    return network.to(memory_format=torch.channels_last)


def _own(module: nn.Module | None, config: dict, classes: int) -> Network:
    if module is None:
        raise ValueError(f"its network is a module of yours, {config.get('class')}: make one, and give it as `module`")
    head = dict(module.named_modules()).get(config["head"])
    if not isinstance(head, nn.Linear) or head.out_features != classes:
        raise ValueError(
            f"`module` has no linear layer {config['head']!r} with {classes} outputs: give one of the class"
            f" {config.get('class')}, made as it was then"
        )
    return Network(*cut(copy.deepcopy(module), Picked(config["output"]), [config["head"]]), config)


def preprocessing(name: str) -> Preprocessing:
    """What a pretrained network has done to its images; that of ImageNet for networks without pretrained weights.

    Raises:
        FileNotFoundError: a transformers network has no image processor beside it.
        ValueError: images are not three channels, or more is done to them than normalizing and flipping these.
    """
    if name.startswith(TIMM):
        return of_timm(name.removeprefix(TIMM))
    if name.startswith(TRANSFORMERS):
        return of_transformers(name.removeprefix(TRANSFORMERS))
    return Preprocessing()
