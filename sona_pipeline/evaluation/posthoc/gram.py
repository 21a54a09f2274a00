"""Gram matrices (Sastry & Oore 2020): how far correlations of channels leave the range of the predicted class.

As in the authors' code: of every convolution and activation, of orders 1 to 10, divided by the confidence, and each
layer by its mean over ID images. OpenOOD's own version adds up all channels of its five stages first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from sona_pipeline.evaluation.posthoc.base import Known, Method, Scorer, Seen

ORDERS = range(1, 11)
HELD_OUT = 10
"""Of training images every tenth gives the layers' means, if there are no validation images."""


@contextmanager
def recorded(network: nn.Module) -> Iterator[list[torch.Tensor]]:
    """Within it, the list gets the row sums `[B, orders, C]` of each layer's Gram matrices, in the order of use."""
    found: list[torch.Tensor] = []

    def keep(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        if output.dim() == 4:
            found.append(row_sums(output))

    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d) or _is_activation(m)]
    hooks = [layer.register_forward_hook(keep) for layer in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _is_activation(module: nn.Module) -> bool:
    return type(module).__module__.startswith(("torch.nn.modules.activation", "timm.layers.activations"))


def row_sums(maps: torch.Tensor) -> torch.Tensor:
    """Row sums `[B, orders, C]` of the Gram matrices of the p-th powers of maps `[B, C, H, W]`, to the power 1 / p."""
    flat, sums = maps.detach().flatten(2).double(), []
    power = torch.ones_like(flat)
    for order in ORDERS:
        power = power * flat
        rows = (power * power.sum(dim=1, keepdim=True)).sum(dim=2)  # of power @ power.T, without that matrix
        sums.append(rows.sign() * rows.abs() ** (1 / order))
    return torch.stack(sums, dim=1)


class Ranges:
    """The least and the greatest row sum of each layer, order and channel among the images of each predicted class."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.bounds: list[tuple[torch.Tensor, torch.Tensor]] = []

    def widen(self, layers: list[torch.Tensor], predicted: torch.Tensor) -> None:
        """Take in images, given by `recorded` and the class indices `[B]`."""
        if not self.bounds:
            shapes = [(self.classes, *layer.shape[1:]) for layer in layers]
            self.bounds = [
                (layer.new_full(shape, torch.inf), layer.new_full(shape, -torch.inf))
                for layer, shape in zip(layers, shapes)
            ]
        for (low, high), layer in zip(self.bounds, layers):
            for label in predicted.unique():
                own = layer[predicted == label]
                low[label] = torch.minimum(low[label], own.amin(dim=0))
                high[label] = torch.maximum(high[label], own.amax(dim=0))

    def fill(self) -> None:
        """Give a class that was not predicted the range of all classes together."""
        for low, high in self.bounds:
            empty = low[:, 0, 0].isinf()
            low[empty], high[empty] = low.amin(dim=0), high.amax(dim=0)

    def deviations(self, layers: list[torch.Tensor], predicted: torch.Tensor) -> torch.Tensor:
        """How far images are outside, relative to the bounds and added up over each layer: `[B, layers]`."""
        found = []
        for (lows, highs), layer in zip(self.bounds, layers):
            low, high = lows[predicted], highs[predicted]
            below = (low - layer).relu() / (low + 1e-6).abs()
            above = (layer - high).relu() / (high + 1e-6).abs()
            found.append((below + above).sum(dim=(1, 2)))
        return torch.stack(found, dim=1)


@torch.no_grad()
def fit(known: Known) -> Scorer:
    """Ranges of training images by predicted class; means over validation images, or training images held out.

    Raises:
        ValueError: the network has no layer that gives feature maps.
    """
    network = known.detector.network
    ranges = Ranges(len(known.detector.classes))

    def measured(seen: Seen) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
        with recorded(network) as layers:
            confidence, predicted = known.detector(seen.pixels).softmax(dim=1).max(dim=1)
        if not layers:
            raise ValueError("the network has no convolution or activation that gives feature maps, which Gram needs")
        return layers, predicted, confidence.double()[:, None]

    def deviations(seen: Seen) -> torch.Tensor:
        layers, predicted, confidence = measured(seen)
        return ranges.deviations(layers, predicted) / confidence

    step = 0 if known.has_validation else HELD_OUT
    for batch in parts_of(known.training_images(), step, held_out=False):
        layers, predicted, _ = measured(batch)
        ranges.widen(layers, predicted)
    ranges.fill()
    held_out = known.validation_images() if known.has_validation else known.training_images()
    mean = torch.cat([deviations(batch) for batch in parts_of(held_out, step, held_out=True)]).mean(dim=0) + 1e-7

    @torch.no_grad()
    def score(seen: Seen) -> torch.Tensor:
        return (deviations(seen) / mean).sum(dim=1)

    return score


def parts_of(batches: Iterator[tuple[Seen, torch.Tensor]], step: int, held_out: bool) -> Iterator[Seen]:
    """The images at every `step`-th place, or the others; all of them at step 0."""
    start = 0
    for seen, labels in batches:
        places = torch.arange(start, start + len(labels))
        start += len(labels)
        chosen = (places % step == step - 1) == held_out if step else torch.ones_like(places, dtype=torch.bool)
        if chosen.any():
            yield Seen(seen.detector, seen.pixels[chosen.to(seen.pixels.device)])


METHOD = Method(fit, needs_images=True, on_validation=True)
