"""Classifiers that were trained elsewhere, taken up as detectors: weights, head, and how they see images."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from sona_pipeline.common.files import read_text
from sona_pipeline.common.messages import brief
from sona_pipeline.common.names import expanded
from sona_pipeline.detection import foreign
from sona_pipeline.detection.detector import Detector, load_detector
from sona_pipeline.detection.heads import OTHER_HEADS, Whole, found_head
from sona_pipeline.detection.networks import OWN, TIMM, TRANSFORMERS, Network
from sona_pipeline.detection.preprocessing import (
    CHANNELS,
    Channels,
    Preprocessing,
    of_timm_settings,
    of_transformers,
    three,
)
from sona_pipeline.detection.settings import ClassifierSettings

NO_NAMES = re.compile(r"LABEL_\d+")
WEIGHTS = "model.safetensors"
CONVERT = "safetensors.torch.save_file(torch.load(FILE, weights_only=True), 'model.safetensors')"


def as_detector(
    module: nn.Module,
    classes: Sequence[str],
    *,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    channel_order: str = "RGB",
    crop_pct: float = 1.0,
    head: str | None = None,
) -> Detector:
    """Any classifier as a detector, whose logits are the same: `logits = W f(x) + b` becomes body f and head (W, b).

        detector = as_detector(net, ["cat", "dog"], image_size=224, mean=(0.5,) * 3, std=(0.5,) * 3)
        train_detector(images, RECIPES["finetune"], classifier=detector, validation=held_out, outliers=pairs)

    Args:
        module: takes normalized images `[B, C, H, W]` and gives logits: as a tensor, or in a dictionary, a tuple, or an
            object with `logits`. It is copied.
        classes: their names, in the order of the logits.
        image_size: side in pixels of its images.
        mean, std: of red, green and blue in [0, 1], by which images are normalized; equal ones for grey images.
        channel_order: "RGB", "BGR", "L" or "RGBA", see `Detector`.
        crop_pct: share of the short side of an image that it sees.
        head: path of the linear layer that the logits come from, such as "fc"; found by itself if there is one.

    Raises:
        ValueError: the logits do not come straight from one linear layer with an output a class, or the module takes no
            images of this size.
    """
    module = copy.deepcopy(module).cpu()
    name, channels = type(module).__name__, CHANNELS.get(channel_order, 3)
    output, path = found_head(module, name, image_size, channels, head)
    config = {"head": path, "output": output.key, "class": f"{type(module).__module__}.{type(module).__qualname__}"}
    expected = _evaluated(Whole(module, output), image_size, channels)[0]
    if len(expected[0]) != len(classes):
        raise ValueError(
            f"{name} gives {len(expected[0])} logits, but there are {len(classes)} classes: name each once"
        )
    detector = Detector(
        list(classes),
        OWN,
        image_size,
        crop_pct,
        three(mean),
        three(std),
        channel_order=channel_order,
        network_config=config,
        module=module,
    )
    _check_same(detector.network, expected, name, image_size, channels)
    return detector.eval()


def load_classifier(asked: ClassifierSettings) -> Detector:
    """A trained classifier as a detector without a threshold: one of ours, of transformers, or of timm.

    Args:
        asked: which one, and what is not written beside it.

    Raises:
        FileNotFoundError: there is none.
        ValueError: its weights are a pickle or damaged, its classes have no names, it is not known how its images are
            to be prepared, or it does not end in a linear layer.
    """
    place = str(asked.classifier)
    if place.startswith(TIMM):
        name, _, file = place.removeprefix(TIMM).partition("=")
        return _timm(name, Path(file) if file else None, {}, asked, place)
    folder = expanded(place)
    config = _config_of(folder, place)
    if "network" in config:
        return load_detector(folder, "cpu")
    if "model_type" in config:
        return _transformers(str(folder), config, asked)
    if "architecture" in config:
        return _timm(config["architecture"], _weights_of(folder, place), config, asked, place)
    raise ValueError(
        f"{place} is no classifier that is known: give the folder or Hub id of a detector, or of an image classifier of"
        " transformers or timm, or timm:NAME=FILE"
    )


def _transformers(place: str, config: dict, asked: ClassifierSettings) -> Detector:
    if config.get("problem_type") == "multi_label_classification":
        raise ValueError(f"{place} has a multi-label head, but a detector has one class an image: give another")
    found = [str(name) for _, name in sorted(config.get("id2label", {}).items(), key=lambda item: int(item[0]))]
    classes = _names(found, asked, place)
    try:
        sight = of_transformers(place)
    except FileNotFoundError:
        sight = None
    size, sight = _stated(sight, asked, place)
    settings = foreign.transformers_config(place)
    body, head = foreign.transformers_classifier(place, size, settings)
    return _detector(f"{TRANSFORMERS}{place}", Network(body, head, settings), classes, size, sight)


def _timm(name: str, file: Path | None, config: dict, asked: ClassifierSettings, place: str) -> Detector:
    import timm

    foreign.check_is_timm(name)
    if file is None:
        raise ValueError(f"{place} names no weights: write timm:{name}=FILE with a safetensors file, or give a Hub id")
    weights = _read_weights(file)
    registered = timm.get_pretrained_cfg(name)
    settings = config.get("pretrained_cfg") or (registered.to_dict() if registered else {})
    size, sight = _stated(of_timm_settings(settings, name) if settings else None, asked, place)
    layer = settings.get("classifier") or "fc"
    if f"{layer}.weight" not in weights:
        raise ValueError(f"{file} has no {layer}.weight, the head of {name}: give the whole classifier")
    count, channels = len(weights[f"{layer}.weight"]), CHANNELS[sight.channel_order]
    model: Any = foreign.timm_model(name, size, channels=channels, classes=count)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(
            f"the weights in {file} are not those of {name}: name its own network ({brief(error)})"
        ) from error
    classes = _names(list(config.get("label_names") or []), asked, place)
    expected = _evaluated(model, size, channels)
    head = model.get_classifier()
    if not isinstance(head, nn.Linear):
        raise ValueError(f"{name} does not end in a linear layer ({OTHER_HEADS}): give another classifier")
    model.reset_classifier(0)
    network = Network(model, head)
    _check_same(network, expected, name, size, channels)
    return _detector(f"{TIMM}{name}", network, classes, size, sight)


def _detector(name: str, network: Network, classes: list[str], size: int, sight: Preprocessing) -> Detector:
    """A detector with this network, whose settings build the same one again."""
    if network.head.out_features != len(classes):
        raise ValueError(
            f"{name} has {network.head.out_features} logits, but {len(classes)} names of classes: give one each"
        )
    detector = Detector(
        classes,
        name,
        size,
        sight.crop_pct,
        sight.mean,
        sight.std,
        channel_order=sight.channel_order,
        network_config=network.config,
    )
    detector.network.load_state_dict(network.state_dict())
    return detector.eval()


def _stated(found: Preprocessing | None, asked: ClassifierSettings, place: str) -> tuple[int, Preprocessing]:
    """Side of the images, and what is done to them: as it is written beside the classifier, or as the user says."""
    said: dict[str, Any] = {}
    if asked.classifier_mean is not None:
        said["mean"] = _numbers("classifier_mean", asked.classifier_mean)
    if asked.classifier_std is not None:
        said["std"] = _numbers("classifier_std", asked.classifier_std)
    size = asked.classifier_size or (found.image_size if found else None)
    if size is None or (found is None and len(said) < 2):
        raise ValueError(
            f"it is not known how the images of {place} were prepared in its training: say it by --classifier-size,"
            " --classifier-mean and --classifier-std"
        )
    return size, replace(found or Preprocessing(), **said)


def _names(found: list[str], asked: ClassifierSettings, place: str) -> list[str]:
    if asked.classifier_labels is not None:
        lines = read_text(Path(asked.classifier_labels)).splitlines()
        found = [line.strip() for line in lines if line.strip()]
    if not found or all(NO_NAMES.fullmatch(name) for name in found):
        raise ValueError(
            f"the classes of {place} have no names: give a file with a name a line, in the order of its logits, as"
            " --classifier-labels"
        )
    return found


def _numbers(name: str, text: str) -> Channels:
    try:
        return three([float(part) for part in text.split(",")])
    except ValueError:
        raise ValueError(
            f"`{name}` is {text!r}, but has to be one number, or three such as 0.485,0.456,0.406"
        ) from None


def _config_of(folder: Path, place: str) -> dict:
    if not folder.exists() and not re.fullmatch(r"[\w.-]+/[\w.-]+", place):
        raise FileNotFoundError(f"{place} does not exist: give the folder of a detector or classifier, or a Hub id")
    if folder.exists() and not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{place} holds no detector or other classifier: there is no config.json in it")
    try:
        file = folder / "config.json" if folder.exists() else Path(hf_hub_download(place, "config.json"))
        config = json.loads(read_text(file))
    except (OSError, EntryNotFoundError, HFValidationError, ValueError) as error:
        raise FileNotFoundError(
            f"{place} is no classifier here or on the Hub whose config.json can be had and read: {brief(error)}"
        ) from error
    return config if isinstance(config, dict) else {}


def _weights_of(folder: Path, place: str) -> Path:
    if (folder / WEIGHTS).is_file():
        return folder / WEIGHTS
    try:
        if folder.exists():
            raise FileNotFoundError(f"there is no {WEIGHTS} in it")
        return Path(hf_hub_download(place, WEIGHTS))
    except (OSError, EntryNotFoundError) as error:
        raise ValueError(
            f"{place} has no weights in safetensors, and a pickle is not loaded: convert it by {CONVERT}"
            f" ({brief(error)})"
        ) from error


def _read_weights(file: Path) -> dict[str, torch.Tensor]:
    if not file.is_file():
        raise FileNotFoundError(f"the weights {file} do not exist: give a safetensors file")
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(
            f"{file} is no safetensors file, and a pickle is not loaded: convert it by {CONVERT} ({brief(error)})"
        ) from error


@torch.no_grad()
def _evaluated(module: nn.Module, size: int, channels: int) -> Any:
    """What a module gives, as it is in use, for two images."""
    return module.eval()(torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(0)))


def _check_same(network: Network, expected: torch.Tensor, name: str, size: int, channels: int) -> None:
    found = _evaluated(network, size, channels)[0]
    if not torch.allclose(found, expected, rtol=1e-3, atol=1e-4):
        raise ValueError(
            f"the logits of {name} are not those of its last linear layer ({OTHER_HEADS}): give a classifier that ends"
            " in one"
        )
