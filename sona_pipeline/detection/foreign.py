"""Bodies of the networks of timm and transformers: images `[B, 3, H, W]` to features `[B, D]`, without a head."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sona_pipeline.common.loading import loading
from sona_pipeline.common.messages import brief

_OF_THE_CHECKPOINT = ("id2label", "label2id", "_name_or_path", "transformers_version", "dtype")
_SAID_BY_NETWORKS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What networks raise, each in its own way, when they cannot be of a size."""


def timm_body(name: str, image_size: int, pretrained: bool) -> nn.Module:
    """An image model of timm; of distilled ones, the mean of the two features.

    Raises:
        ValueError: there is none of this name, it has no weights that can be loaded, or takes no images of this size.
    """
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
            return timm.create_model(name, **options, img_size=image_size)
        except TypeError:  # most convolutional networks take any size, and no such argument
            return timm.create_model(name, **options)
    except LocalEntryNotFoundError:  # for want of a connection
        raise
    except EntryNotFoundError as error:
        raise ValueError(refusal) from error
    except _SAID_BY_NETWORKS as error:
        raise ValueError(f"{name} cannot be built for {_images(image_size)} ({brief(error)})") from error


class Logits(nn.Module):
    """A transformers classifier without its last layer, as a function of pixels; of two heads, both inputs in a row."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Features `[B, D]` of normalized images `[B, 3, H, W]`."""
        return torch.cat(_outputs(self.model, pixels), dim=-1)


def transformers_body(name: str, image_size: int, config: dict | None, pretrained: bool) -> tuple[nn.Module, dict]:
    """An image classifier of transformers without its head, or its two heads; and what it is built from again.

    Raises:
        FileNotFoundError: there is no such classifier.
        ValueError: it cannot be loaded, takes no images of this size, or does not end in linear layers.
    """
    from transformers import AutoConfig, AutoModelForImageClassification

    if config is None:
        with loading(name, "image classifier"):
            config = AutoConfig.from_pretrained(name).to_dict()
        config = {key: value for key, value in config.items() if key not in _OF_THE_CHECKPOINT}
        if not pretrained:
            _resize(config, image_size)
    try:
        settings = AutoConfig.for_model(**config)
        settings.architectures = settings.architectures or []  # which transformers goes through
        if not pretrained:
            model = AutoModelForImageClassification.from_config(settings)
    except _SAID_BY_NETWORKS as error:
        raise ValueError(f"{name} cannot be built for {_images(image_size)} ({brief(error)})") from error
    if pretrained:
        with loading(name, "image classifier"):
            model = AutoModelForImageClassification.from_pretrained(
                name, config=settings, ignore_mismatched_sizes=True, use_safetensors=True
            )
    heads = _heads(model, name, image_size)
    if not heads:
        raise ValueError(f"{name} does not end in a linear layer, and cannot be the network of a detector")
    for head in heads:
        model.set_submodule(head, nn.Identity())
    return Logits(model), config


def _resize(config: dict, image_size: int) -> None:
    """Have the settings of an untrained network be for images of this size, if they are for one."""
    for part in (config, config.get("vision_config") or {}):
        if "image_size" in part:
            given = part["image_size"]
            part["image_size"] = [image_size] * len(given) if isinstance(given, (list, tuple)) else image_size


def feature_width(body: nn.Module, name: str, image_size: int) -> int:
    """Number of features that the body gives for an image.

    Raises:
        ValueError: it takes no images of this size, or does not give one row an image.
    """
    features = _tried(body, name, image_size)
    if not isinstance(features, torch.Tensor) or features.dim() != 2:
        found = f"shape {list(features.shape)}" if isinstance(features, torch.Tensor) else type(features).__name__
        raise ValueError(f"{name} gives features of {found}, not one row an image: choose another network")
    return features.shape[1]


@torch.no_grad()
def _tried(body: nn.Module, name: str, image_size: int) -> Any:
    """What a network gives for an image; it is left in training mode."""
    image = torch.linspace(-1, 1, 3 * image_size * image_size).view(1, 3, image_size, image_size)
    body.eval()
    try:
        return body(image)
    except _SAID_BY_NETWORKS as error:
        raise ValueError(f"{name} does not take {_images(image_size)} ({brief(error)})") from error
    finally:
        body.train()


def _images(image_size: int) -> str:
    return f"images of {image_size} pixels: choose another image size or network"


def _outputs(model: nn.Module, pixels: torch.Tensor) -> list[torch.Tensor]:
    """The logits of a transformers classifier; of one with a distillation token, those of both heads."""
    given = model(pixel_values=pixels)
    if "distillation_logits" in given:
        return [given.cls_logits, given.distillation_logits]
    return [given.logits] if "logits" in given else []


def _heads(model: nn.Module, name: str, image_size: int) -> list[str]:
    """The linear layers whose outputs are the logits, or the two whose outputs have the logits as their mean."""
    seen: list[tuple[str, torch.Tensor]] = []

    def record(path: str) -> Any:
        return lambda module, given, output: seen.append((path, output))

    layers = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    hooks = [module.register_forward_hook(record(path)) for path, module in layers]
    outputs = _tried(_Outputs(model), name, image_size)
    for hook in hooks:
        hook.remove()
    memory = [output.untyped_storage().data_ptr() for output in outputs]
    heads = [path for path, output in seen if output.untyped_storage().data_ptr() in memory]
    if len(heads) == len(outputs):  # none, if there are no logits
        return heads
    last = [(path, output) for path, output in seen if output.shape == outputs[0].shape][-2:]
    is_mean = len(last) == 2 and torch.equal((last[0][1] + last[1][1]) / 2, outputs[0])
    return [path for path, _ in last] if is_mean else []


class _Outputs(nn.Module):
    """`_outputs` as a module, to be tried like one."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        return _outputs(self.model, pixels)
