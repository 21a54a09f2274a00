"""Networks of the detector: a body that takes images `[B, 3, H, W]` to features `[B, D]`, and a linear head."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torchvision.models import resnet18 as torchvision_resnet18
from torchvision.models.resnet import BasicBlock

SMALL = 64
"""Images up to this side get the stem for small images."""
TIMM, TRANSFORMERS = "timm:", "transformers:"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Network(nn.Module):
    """Body and linear head: images `[B, 3, H, W]` to logits `[B, C]` and penultimate features `[B, D]`.

    Args:
        body: gives features; for the networks of this file a `Sequential` that ends in pooling and flattening.
        head: gives logits.
        config: what the body is built from again, if its name is not enough.
    """

    def __init__(self, body: nn.Module, head: nn.Linear, config: dict | None = None):
        super().__init__()
        self.body, self.head, self.config = body, head, config

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits `[B, C]` and features `[B, D]` of normalized images `[B, 3, H, W]`."""
        features = self.body(pixels)
        return self.head(features), features

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


def build(name: str, classes: int, image_size: int, *, config: dict | None = None, pretrained: bool = False) -> Network:
    """The network `name` with a new head for `classes` classes.

    Args:
        name: of `NETWORKS`; or "timm:NAME" for any image model of timm; or "transformers:NAME" for any image
            classifier of transformers, by Hub id or folder.
        classes: number of classes.
        image_size: side of the images in pixels.
        config: of the transformers model, which is otherwise looked up by its name.
        pretrained: load the weights that come with the name into the body. A transformers model then keeps its own
            image size, since its position embeddings are of no other.

    Raises:
        ValueError: there is no such network, it has no pretrained weights, or does not take images of this size.
    """
    if name.startswith(TIMM):
        network = _from_timm(name.removeprefix(TIMM), classes, image_size, pretrained)
    elif name.startswith(TRANSFORMERS):
        network = _from_transformers(name.removeprefix(TRANSFORMERS), classes, image_size, config, pretrained)
    elif name not in NETWORKS:
        raise ValueError(f"no network named {name!r}: choose one of {sorted(NETWORKS)}, timm:NAME or transformers:NAME")
    elif pretrained:
        raise ValueError(
            f"{name} has no pretrained weights: use a timm: or transformers: network, or train from scratch"
        )
    else:
        network = NETWORKS[name](classes, image_size)
    return network.to(memory_format=torch.channels_last)


def normalization(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation `(r, g, b)` that a pretrained network has its images in [0, 1] normalized by.

    Networks without pretrained weights have those of ImageNet.
    """
    if name.startswith(TIMM):
        import timm

        config = timm.get_pretrained_cfg(name.removeprefix(TIMM), allow_unregistered=True)
        return (tuple(config.mean), tuple(config.std)) if config else (IMAGENET_MEAN, IMAGENET_STD)
    if name.startswith(TRANSFORMERS):
        from transformers import AutoImageProcessor

        processor = AutoImageProcessor.from_pretrained(name.removeprefix(TRANSFORMERS))
        return tuple(processor.image_mean), tuple(processor.image_std)
    return IMAGENET_MEAN, IMAGENET_STD


def _from_timm(name: str, classes: int, image_size: int, pretrained: bool) -> Network:
    import timm
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name.split('.')[0][:5]}*")[:5]) or "see timm.list_models()"
        raise ValueError(f"timm has no model named {name!r}; similar ones: {near}")
    refusal = f"{name} has no pretrained weights in safetensors, and a pickle is not loaded: choose another network"
    options: dict[str, Any] = {"num_classes": 0, "pretrained": pretrained}
    if pretrained:
        config = timm.get_pretrained_cfg(name)
        if not config or not config.hf_hub_id:
            raise ValueError(refusal)
        options["pretrained_cfg_overlay"] = {"hf_hub_filename": "model.safetensors", "url": ""}  # this file or none
    try:
        try:
            body = timm.create_model(name, **options, img_size=image_size)
        except TypeError:  # most convolutional networks take any size, and no such argument
            body = timm.create_model(name, **options)
    except LocalEntryNotFoundError:  # for want of a connection
        raise
    except EntryNotFoundError as error:
        raise ValueError(refusal) from error
    return Network(body, nn.Linear(_width(body, name, image_size), classes))


class _Logits(nn.Module):
    """A transformers classifier without its last layer, as a function of pixels."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=pixels).logits


def _from_transformers(name: str, classes: int, image_size: int, config: dict | None, pretrained: bool) -> Network:
    from transformers import AutoConfig, AutoModelForImageClassification

    if config is None:
        config = AutoConfig.from_pretrained(name).to_dict()
        config = {key: value for key, value in config.items() if key not in _OF_THE_CHECKPOINT}
        if "image_size" in config and not pretrained:
            config["image_size"] = image_size
    settings = AutoConfig.for_model(**config)
    if pretrained:
        model = AutoModelForImageClassification.from_pretrained(
            name, config=settings, ignore_mismatched_sizes=True, use_safetensors=True
        )
    else:
        model = AutoModelForImageClassification.from_config(settings)
    place = [
        path for path, m in model.named_modules() if isinstance(m, nn.Linear) and m.out_features == settings.num_labels
    ]
    if not place:
        raise ValueError(f"{name} does not end in a linear layer, and cannot be the network of a detector")
    model.set_submodule(place[-1], nn.Identity())
    body = _Logits(model)
    return Network(body, nn.Linear(_width(body, name, image_size), classes), config)


_OF_THE_CHECKPOINT = ("id2label", "label2id", "architectures", "_name_or_path", "transformers_version", "dtype")


@torch.no_grad()
def _width(body: nn.Module, name: str, image_size: int) -> int:
    """Number of features that the body gives for an image."""
    body.eval()
    try:
        features = body(torch.zeros(1, 3, image_size, image_size))
    except Exception as error:  # each library says it in its own way
        raise ValueError(
            f"{name} does not take images of {image_size} pixels: choose another image size or network ({error})"
        ) from error
    body.train()
    if features.dim() != 2:
        raise ValueError(f"{name} gives features of shape {list(features.shape)}, not one row an image")
    return features.shape[1]
