"""A classifier of any origin in two parts: a body that gives features, and the linear layer of its logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from sona_pipeline.common.messages import brief

SAID_BY_NETWORKS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What networks raise, each in its own way, when they cannot be of a size."""
OTHER_HEADS = "a cosine, multi-label or hierarchical head, for one, does not"
Outputs = Callable[[nn.Module, torch.Tensor], list[torch.Tensor]]
"""The logits of a classifier for normalized images `[B, C, H, W]`; two of one whose heads have them as their mean."""


class Body(nn.Module):
    """A classifier without its last layer, as a function of pixels; of two heads, both inputs in a row."""

    def __init__(self, model: nn.Module, outputs: Outputs):
        super().__init__()
        self.model, self.outputs = model, outputs

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Features `[B, D]` of normalized images `[B, 3, H, W]`."""
        return torch.cat(self.outputs(self.model, pixels), dim=-1)


class Whole(nn.Module):
    """A classifier's logits as a module, to be tried like one."""

    def __init__(self, model: nn.Module, outputs: Outputs):
        super().__init__()
        self.model, self.outputs = model, outputs

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """See `Outputs`."""
        return self.outputs(self.model, pixels)


def cut(model: nn.Module, outputs: Outputs, paths: list[str]) -> tuple[Body, nn.Linear]:
    """A classifier without the linear layers at `paths`, and these as one layer of features in a row.

    Args:
        model: is changed: the layers are taken out.
        outputs: see `Outputs`.
        paths: of one layer, or of two whose mean is the logits.
    """
    heads = [layer for path in paths if isinstance(layer := model.get_submodule(path), nn.Linear)]
    for path in paths:
        model.set_submodule(path, nn.Identity())
    if len(heads) == 1:
        return Body(model, outputs), heads[0]
    weights = [head.weight.data for head in heads]
    mean = nn.Linear(sum(one.shape[1] for one in weights), len(weights[0]))
    mean.weight.data = torch.cat(weights, dim=1) / len(heads)
    mean.bias.data = torch.stack([head.bias.data for head in heads]).mean(dim=0)
    return Body(model, outputs), mean


def feature_width(body: nn.Module, name: str, image_size: int, channels: int = 3) -> int:
    """Number of features that the body gives for an image.

    Raises:
        ValueError: it takes no images of this size, or does not give one row an image.
    """
    features = tried(body, name, image_size, channels)
    if not isinstance(features, torch.Tensor) or features.dim() != 2:
        found = f"shape {list(features.shape)}" if isinstance(features, torch.Tensor) else type(features).__name__
        raise ValueError(f"{name} gives features of {found}, not one row an image: choose another network")
    return features.shape[1]


def heads_of(model: nn.Module, outputs: Outputs, name: str, image_size: int, channels: int = 3) -> list[str]:
    """Paths of the linear layers whose outputs are the logits, or of the two whose outputs have the logits as mean."""
    seen: list[tuple[str, torch.Tensor]] = []

    def record(path: str) -> Any:
        return lambda module, given, output: seen.append((path, output))

    layers = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.Linear)]
    hooks = [module.register_forward_hook(record(path)) for path, module in layers]
    try:
        given = tried(Whole(model, outputs), name, image_size, channels)
    finally:
        for hook in hooks:
            hook.remove()
    memory = [output.untyped_storage().data_ptr() for output in given]
    heads = [path for path, output in seen if output.untyped_storage().data_ptr() in memory]
    if len(heads) == len(given):  # none, if there are no logits
        return heads
    last = [(path, output) for path, output in seen if output.shape == given[0].shape][-2:]
    is_mean = len(last) == 2 and torch.equal((last[0][1] + last[1][1]) / 2, given[0])
    return [path for path, _ in last] if is_mean else []


@torch.no_grad()
def tried(body: nn.Module, name: str, image_size: int, channels: int = 3) -> Any:
    """What a network gives for an image; it is left in training mode.

    Raises:
        ValueError: it takes no images of this size.
    """
    count = channels * image_size * image_size
    image = torch.linspace(-1, 1, count, device=_device(body)).view(1, channels, image_size, image_size)
    body.eval()
    try:
        return body(image)
    except SAID_BY_NETWORKS as error:
        raise ValueError(f"{name} does not take {images_of(image_size)} ({brief(error)})") from error
    finally:
        body.train()


def images_of(image_size: int) -> str:
    """What a message says of images of a size that a network does not take."""
    return f"images of {image_size} pixels: choose another image size or network"


def _device(module: nn.Module) -> torch.device | None:
    return next((parameter.device for parameter in module.parameters()), None)


class Picked:
    """The logits in what a module gives: a tensor, or one by its key in a dictionary, tuple or object.

    Args:
        key: of a dictionary, name of an attribute, or place in a tuple; None for a module that gives logits only.
    """

    def __init__(self, key: str | int | None):
        self.key = key

    def __call__(self, model: nn.Module, pixels: torch.Tensor) -> list[torch.Tensor]:
        """The logits of normalized images, as the one member of a list."""
        given = model(pixels)
        return [given if self.key is None else _tensors(given)[self.key]]


def found_head(module: nn.Module, name: str, image_size: int, channels: int, head: str | None) -> tuple[Picked, str]:
    """Where in a module's output the logits are, and the path of the linear layer that they come from.

    Args:
        module: gives a tensor, a dictionary, a tuple, or an object with `logits`.
        name: what messages call it.
        image_size, channels: of the images that it takes.
        head: path of the layer, if it is known.

    Raises:
        ValueError: its output does not come from one linear layer, or that one has weights of another kind.
    """
    given = _tensors(tried(module, name, image_size, channels))
    keys = ["logits"] if "logits" in given else [key for key, value in given.items() if value.dim() == 2]
    found = [
        (key, paths) for key in keys if len(paths := heads_of(module, Picked(key), name, image_size, channels)) == 1
    ]
    if head is not None:
        found = [(key, paths) for key, paths in found if paths == [head]]
    if not found:
        raise ValueError(
            f"{name} does not give the output of {head or 'a torch.nn.Linear'} as its logits ({OTHER_HEADS}): give a"
            " classifier that ends in a linear layer"
        )
    if len(found) > 1:
        raise ValueError(
            f"{name} gives the outputs of several linear layers ({', '.join(paths[0] for _, paths in found)}): say by"
            " `head` which of them has the logits"
        )
    key, (path,) = found[0]
    layer = module.get_submodule(path)
    if parametrize.is_parametrized(layer):
        raise ValueError(f"the weights of {path} in {name} are parametrized: take that off by remove_parametrizations")
    return Picked(key), path


def _tensors(given: Any) -> dict[str | int | None, torch.Tensor]:
    """The tensors in what a module gives, by key."""
    if isinstance(given, torch.Tensor):
        return {None: given}
    if isinstance(getattr(given, "logits", None), torch.Tensor):
        return {"logits": given.logits}
    several = dict(enumerate(given)) if isinstance(given, tuple | list) else given
    items = several.items() if isinstance(several, Mapping) else ()
    return {key: value for key, value in items if isinstance(value, torch.Tensor)}
