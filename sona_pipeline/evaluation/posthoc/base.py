"""What every post-hoc score is made from: images it is fitted to, images it scores, and the form of its entry."""

from __future__ import annotations

import copy
import importlib.util
import inspect
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import nn

from sona_pipeline.detection.detector import Detector

Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]
"""Images as pixels `[B, 3, H, W]` in [0, 1] and class indices `[B]`, both on the CPU."""


class Seen:
    """A batch to be scored; pixels, features and logits are on the device of the detector.

    Args:
        detector: in evaluation mode.
        pixels: `[B, 3, H, W]` in [0, 1]; None if the features are known.
        features: penultimate features `[B, D]`, computed when they are asked for by default.
        found: what `once` has found for this batch before.
    """

    def __init__(
        self,
        detector: Detector,
        pixels: torch.Tensor | None = None,
        features: torch.Tensor | None = None,
        found: dict[Hashable, torch.Tensor] | None = None,
    ) -> None:
        self.detector, self._pixels, self._features = detector, pixels, features
        self._found = {} if found is None else found

    def once(self, key: Hashable, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """What `compute` gives for this batch; what has the same key is computed once."""
        if key not in self._found:
            self._found[key] = compute()
        return self._found[key]

    @cached_property
    def pixels(self) -> torch.Tensor:
        """`[B, 3, H, W]` in [0, 1]."""
        if self._pixels is None:
            raise ValueError("the score needs the images themselves, and not their features only")
        return self._pixels.to(self.detector.device)

    @cached_property
    @torch.no_grad()
    def features(self) -> torch.Tensor:
        """Penultimate features `[B, D]`."""
        return self.detector.features(self.pixels) if self._features is None else self._features

    @cached_property
    @torch.no_grad()
    def logits(self) -> torch.Tensor:
        """`[B, C]`."""
        return self.detector.network.head(self.features)


Found: TypeAlias = defaultdict[int, dict[Hashable, torch.Tensor]]
"""What `Seen.once` has found, by the number of the batch."""
Scorer = Callable[[Seen], torch.Tensor]
"""From images to scores `[B]`, higher = more OOD."""


class Labelled(NamedTuple):
    """Features `[N, D]`, logits `[N, C]` and class indices `[N]` of a set, on the device of the detector."""

    features: torch.Tensor
    logits: torch.Tensor
    labels: torch.Tensor

    def right(self) -> Labelled:
        """Those that the network classifies correctly."""
        is_right = self.logits.argmax(dim=1) == self.labels
        return Labelled(*(part[is_right] for part in self))


class Known:
    """The ID images that scores are fitted to; features of a set are computed once for all scores.

    Args:
        detector: whose logits, features or gradients are scored. It is copied, and itself stays as it is.
        batches: training images, every class among them.
        validation: images that were not trained on, as `batches`; these stand for them if there are none.
    """

    def __init__(self, detector: Detector, batches: Batches, validation: Batches | None = None) -> None:
        self.detector = copy.deepcopy(detector).eval().requires_grad_(False)
        self._batches, self._validation = batches, validation
        self._found: Found = defaultdict(dict)

    @cached_property
    def training(self) -> Labelled:
        """Of the training images."""
        return self._labelled(self._batches)

    @cached_property
    def validation(self) -> Labelled:
        """Of the validation images; without any, of the training images."""
        return self.training if self._validation is None else self._labelled(self._validation)

    @property
    def has_validation(self) -> bool:
        """Whether there are validation images."""
        return self._validation is not None

    def training_images(self) -> Iterator[tuple[Seen, torch.Tensor]]:
        """Training images, batch by batch, with their class indices; again and again."""
        return self._images(self._batches, defaultdict(dict))

    def validation_images(self) -> Iterator[tuple[Seen, torch.Tensor]]:
        """Validation images in the same way; what `Seen.once` finds of them is kept."""
        return self._images(self._batches if self._validation is None else self._validation, self._found)

    def _labelled(self, batches: Batches) -> Labelled:
        parts = [(seen.features, seen.logits, labels) for seen, labels in self._images(batches, defaultdict(dict))]
        return Labelled(*(torch.cat(part) for part in zip(*parts)))

    def _images(self, batches: Batches, found: Found) -> Iterator[tuple[Seen, torch.Tensor]]:
        seen: set[int] = set()
        wanted = set(range(len(self.detector.classes)))
        for number, (pixels, labels) in enumerate(batches):
            seen.update(labels.tolist())
            if not seen <= wanted:
                break
            yield Seen(self.detector, pixels, found=found[number]), labels.to(self.detector.device)
        if seen != wanted:
            raise ValueError(
                f"the images are of classes {sorted(seen)[:20]}, but the scores need images of every class from 0 to "
                f"{len(wanted) - 1}: give labelled training images of the detector's own classes"
            )


@dataclass(frozen=True)
class Method:
    """A post-hoc score.

    Attributes:
        fit: from what is known, and parameters by name with their defaults, to a `Scorer`.
        grid: for parameters that a search tries: their values.
        needs_images: whether the scorer looks at pixels, and not at features and logits alone.
        on_validation: whether it is fitted to images that were not trained on, if there are any.
    """

    fit: Callable[..., Scorer]
    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    needs_images: bool = False
    on_validation: bool = False

    @property
    def defaults(self) -> dict[str, Any]:
        """The parameters of `fit` without a search."""
        parameters = list(inspect.signature(self.fit).parameters.values())[1:]
        return {parameter.name: parameter.default for parameter in parameters}


def pytorch_ood() -> Any:
    """The module `pytorch_ood.detector`; ValueError if it is not installed."""
    if importlib.util.find_spec("pytorch_ood") is None:
        raise ValueError('the score comes from pytorch-ood, which is missing: pip install "sona-pipeline[baselines]"')
    from pytorch_ood import detector

    return detector


def energy(logits: torch.Tensor) -> torch.Tensor:
    """Energy `[B]` of logits `[B, C]` at temperature 1."""
    return -logits.logsumexp(dim=1)


def stages(detector: Detector) -> list[nn.Module]:
    """Stem and stages of the network, the first of which takes images in [0, 1].

    Raises:
        ValueError: the stages of the network are not known.
    """
    from torchvision.transforms import Normalize

    stem, *rest = detector.network.stages()
    return [nn.Sequential(Normalize(detector.mean.flatten().tolist(), detector.std.flatten().tolist()), stem), *rest]
