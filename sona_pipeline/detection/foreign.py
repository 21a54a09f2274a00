"""Bodies of the networks of timm and transformers: images `[B, 3, H, W]` to features `[B, D]`, without a head."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sona_pipeline.common.loading import loading
from sona_pipeline.common.messages import brief
from sona_pipeline.detection.heads import OTHER_HEADS, SAID_BY_NETWORKS, Body, cut, heads_of, images_of

_OF_THE_CHECKPOINT = ("id2label", "label2id", "_name_or_path", "transformers_version", "dtype")


def check_is_timm(name: str) -> None:
    """Raise ValueError, with names like it, unless timm has a model of this name."""
    import timm

    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name.split('.')[0][:5]}*")[:5]) or "see timm.list_models()"
        raise ValueError(f"timm has no model named {name!r}; similar ones: {near}")


def timm_model(
    name: str, image_size: int, *, pretrained: bool = False, channels: int = 3, classes: int = 0
) -> nn.Module:
    """An image model of timm; with 0 classes its body, and of distilled ones the mean of the two features.

    Raises:
        ValueError: there is none of this name, it has no weights that can be loaded, or takes no images of this size.
    """
    import timm
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    check_is_timm(name)
    refusal = f"{name} has no pretrained weights in safetensors, and a pickle is not loaded: choose another network"
    options: dict[str, Any] = {"num_classes": classes, "pretrained": pretrained, "in_chans": channels}
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
    except SAID_BY_NETWORKS as error:
        raise ValueError(f"{name} cannot be built for {images_of(image_size)} ({brief(error)})") from error


def transformers_body(name: str, image_size: int, config: dict | None, pretrained: bool) -> tuple[nn.Module, dict]:
    """An image classifier of transformers without its head, or its two heads; and what it is built from again.

    Raises:
        FileNotFoundError: there is no such classifier.
        ValueError: it cannot be loaded, takes no images of this size, or does not end in linear layers.
    """
    from transformers import AutoConfig, AutoModelForImageClassification

    if config is None:
        config = transformers_config(name)
        if not pretrained:
            _resize(config, image_size)
    if pretrained:
        return transformers_classifier(name, image_size, config)[0], config
    try:
        settings = AutoConfig.for_model(**config)
        settings.architectures = settings.architectures or []  # which transformers goes through
        model = AutoModelForImageClassification.from_config(settings)
    except SAID_BY_NETWORKS as error:
        raise ValueError(f"{name} cannot be built for {images_of(image_size)} ({brief(error)})") from error
    return _cut(model, name, image_size)[0], config


def transformers_config(name: str) -> dict:
    """What a classifier of transformers is built from, without what its checkpoint says of itself.

    Raises:
        FileNotFoundError: there is none of this name.
        ValueError: it cannot be loaded.
    """
    from transformers import AutoConfig

    with loading(name, "image classifier"):
        config = AutoConfig.from_pretrained(name).to_dict()
    return {key: value for key, value in config.items() if key not in _OF_THE_CHECKPOINT}


def transformers_classifier(name: str, image_size: int, config: dict) -> tuple[Body, nn.Linear]:
    """An image classifier of transformers with its weights, as body and head.

    Raises:
        FileNotFoundError: there is no such classifier.
        ValueError: it cannot be loaded, takes no images of this size, or does not end in linear layers.
    """
    from transformers import AutoConfig, AutoModelForImageClassification

    with loading(name, "image classifier"):
        settings = AutoConfig.for_model(**config)
        settings.architectures = settings.architectures or []
        settings.num_labels = AutoConfig.from_pretrained(name).num_labels
        model = AutoModelForImageClassification.from_pretrained(
            name, config=settings, ignore_mismatched_sizes=True, use_safetensors=True
        )
    return _cut(model, name, image_size)


def _cut(model: nn.Module, name: str, image_size: int) -> tuple[Body, nn.Linear]:
    heads = heads_of(model, _outputs, name, image_size, getattr(model.config, "num_channels", 3))
    if not heads:
        raise ValueError(f"{name} does not end in a linear layer ({OTHER_HEADS}): choose another network")
    return cut(model, _outputs, heads)


def _resize(config: dict, image_size: int) -> None:
    """Have the settings of an untrained network be for images of this size, if they are for one."""
    for part in (config, config.get("vision_config") or {}):
        if "image_size" in part:
            given = part["image_size"]
            part["image_size"] = [image_size] * len(given) if isinstance(given, (list, tuple)) else image_size


def _outputs(model: nn.Module, pixels: torch.Tensor) -> list[torch.Tensor]:
    """The logits of a transformers classifier; of one with a distillation token, those of both heads."""
    given = model(pixel_values=pixels)
    if "distillation_logits" in given:
        return [given.cls_logits, given.distillation_logits]
    return [given.logits] if "logits" in given else []
