"""Post-hoc scores of pytorch-ood (Kirchheim et al. 2022) on our detectors: the same network, another score.

pytorch-ood comes with `pip install "sona-pipeline[baselines]"`. Its scores are higher for OOD, as ours are.
"""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import normalize
from torchvision.transforms import Normalize

from sona_pipeline.detection.detector import Detector

if TYPE_CHECKING:
    from pytorch_ood.api import Detector as Method

Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]


def fitted(
    name: str, detector: Detector, batches: Batches, validation: Batches | None = None
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The score `name` of `POST_HOC`, fitted to ID training images.

    It works on a copy of the detector in eval mode; the detector itself stays as it is. Random choices of the fit
    (Gram keeps a tenth of the images for its normalization) are the same every time.

    Args:
        name: of `POST_HOC`.
        detector: whose logits, features or gradients are scored.
        batches: ID training images as pixels `[B, 3, H, W]` in [0, 1] and class indices `[B]`, both on the CPU, every
            class among them; some methods go through them more than once, and none if it needs no fit.
        validation: ID images that were not trained on, as `batches`, for the methods of `ON_VALIDATION`; without
            them, these are fitted to `batches`, where the network is more confident than on new images.

    Returns:
        A function from pixels `[B, 3, H, W]` in [0, 1] to scores `[B]` on the detector's device, higher = more OOD.

    Raises:
        ValueError: there is no such method, pytorch-ood is missing, a class has no image (SHE: none that the network
            gets right), or the network has no known stages, which Gram and multi_mahalanobis need.
    """
    if name not in POST_HOC:
        raise ValueError(f"no post-hoc method named {name!r}: choose one of {sorted(POST_HOC)}")
    if importlib.util.find_spec("pytorch_ood") is None:
        raise ValueError(f'{name} comes from pytorch-ood, which is missing: pip install "sona-pipeline[baselines]"')
    from pytorch_ood import detector as ood

    frozen = copy.deepcopy(detector).eval().requires_grad_(False)
    method = POST_HOC[name](ood, frozen).to(frozen.device)
    data = validation if name in ON_VALIDATION and validation is not None else batches
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        method.fit(_EveryClass(data, len(detector.classes)))

    @torch.no_grad()
    def score(pixels: torch.Tensor) -> torch.Tensor:
        return method.predict(pixels.to(frozen.device)).detach()

    return score


class _EveryClass:
    """Batches that are refused if a class is not among them, or another one is."""

    def __init__(self, batches: Batches, classes: int):
        self.batches, self.classes, self.count = batches, classes, 0

    def __len__(self) -> int:
        """Batches taken so far; pytorch-ood writes it to its log."""
        return self.count

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        seen, wanted = set(), set(range(self.classes))
        for pixels, labels in self.batches:
            seen.update(labels.tolist())
            if not seen <= wanted:
                break
            self.count += 1
            yield pixels, labels
        if seen != wanted:
            raise ValueError(
                f"the images are of classes {sorted(seen)[:20]}, but the scores need images of every class from 0 to "
                f"{self.classes - 1}: give labelled training images of the detector's own classes"
            )


class _InDouble:
    """Scatter matrices in double precision.

    pytorch-ood inverts them in single precision with 1e-6 on the diagonal. With features that are always zero, or
    with fewer images than features, that is no positive matrix any more, or cannot be inverted at all.
    """

    def fit_features(self, features: torch.Tensor, labels: torch.Tensor) -> Method:
        return _in_double(super().fit_features, features.double(), labels)  # type: ignore[misc] # of the other base

    def fit_structured(self, features: list[torch.Tensor], labels: torch.Tensor) -> Method:
        fit = super().fit_structured  # type: ignore[misc] # of the other base
        return _in_double(fit, [layer.double() for layer in features], labels)


def _in_double(fit: Callable, *args: Any) -> Method:
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return fit(*args)
    finally:
        torch.set_default_dtype(default)


def _openmax(ood: Any, detector: Detector) -> Method:
    class WithAllDistances(ood.OpenMax):
        def predict_logits(self, logits: torch.Tensor) -> torch.Tensor:
            """pytorch-ood has distances to the classes predicted in a batch only, so add a row that predicts each."""
            one_each = torch.eye(logits.shape[1], dtype=logits.dtype, device=logits.device)
            with np.errstate(over="ignore"):  # scipy's Weibull distribution overflows to 1, as it should
                return super().predict_logits(torch.cat([logits, one_each]))[: len(logits)]

    return WithAllDistances(detector, tailsize=20, alpha=3)


def _knn(ood: Any, detector: Detector) -> Method:
    class OfFewImages(ood.KNN):
        k: int

        def fit_features(self, features: torch.Tensor, labels: torch.Tensor) -> Method:
            self.k = min(self.k, len(features))
            return super().fit_features(features.cpu(), labels.cpu())

    return OfFewImages(detector.features, k=50)


def _gradnorm(ood: Any, detector: Detector) -> Method:
    class OfHead(ood.GradNorm):
        def predict(self, pixels: torch.Tensor) -> torch.Tensor:
            return super().predict(detector.features(pixels))

    return OfHead(detector.network.head, lambda parameter: parameter == "weight")


def _mahalanobis(ood: Any, features: Callable) -> Method:
    return type("Mahalanobis", (_InDouble, ood.Mahalanobis), {})(features)


def _mahalanobis_odin(ood: Any, detector: Detector) -> Method:
    method = ood.MahalanobisODIN(detector.features, eps=0.0014)
    method._base = _mahalanobis(ood, detector.features)
    return method


def _multi_mahalanobis(ood: Any, detector: Detector) -> Method:
    return type("MultiMahalanobis", (_InDouble, ood.MultiMahalanobis), {})(_stages(detector))


def _rmd(ood: Any, detector: Detector) -> Method:
    return type("RMD", (_InDouble, ood.RMD), {})(detector.features)


def _gram(ood: Any, detector: Detector) -> Method:
    head = detector.network.head
    poles = [1, 2, 3, 4, 5]
    return ood.Gram(lambda maps: head(maps.mean(dim=(2, 3))), _stages(detector), len(detector.classes), poles)


def _stages(detector: Detector) -> list[nn.Module]:
    """The stages of the network, the first of which takes images in [0, 1]."""
    stem, *stages = detector.network.stages()
    return [nn.Sequential(Normalize(detector.mean.flatten().tolist(), detector.std.flatten().tolist()), stem), *stages]


def _vim(ood: Any, detector: Detector) -> Method:
    head = detector.network.head
    width = head.in_features
    principal = 1000 if width >= 1500 else 512 if width > 512 else width // 2
    return ood.ViM(detector.features, principal, head.weight, head.bias)


def _on_features(method: Callable, detector: Detector, **settings: Any) -> Method:
    """A method for feature maps on the pooled features, as maps of one pixel; where OpenOOD has it, too."""
    head = detector.network.head
    return method(lambda x: detector.features(x)[:, :, None, None], lambda maps: head(maps.flatten(1)), **settings)


ON_VALIDATION = ("temperature_scaling", "kl_matching")
"""Methods that their papers fit to images that were not trained on."""

POST_HOC: dict[str, Callable[[Any, Detector], Method]] = {
    "openmax": _openmax,
    "odin": lambda ood, d: ood.ODIN(d, eps=0.0014, temperature=1000.0),
    "react": lambda ood, d: ood.ReAct(d.features, d.network.head, percentile=0.9),
    "knn": _knn,
    "dice": lambda ood, d: ood.DICE(d.features, d.network.head.weight, d.network.head.bias, p=0.9),
    "temperature_scaling": lambda ood, d: ood.TemperatureScaling(d),
    "mahalanobis": lambda ood, d: _mahalanobis(ood, d.features),
    "mahalanobis_normalized": lambda ood, d: _mahalanobis(ood, lambda x: normalize(d.features(x))),
    "mahalanobis_odin": _mahalanobis_odin,
    "multi_mahalanobis": _multi_mahalanobis,
    "rmd": _rmd,
    "gram": _gram,
    "gradnorm": _gradnorm,
    "kl_matching": lambda ood, d: ood.KLMatching(d),
    "vim": _vim,
    "ash": lambda ood, d: _on_features(ood.ASH, d, variant="ash-s", percentile=0.9),
    "she": lambda ood, d: ood.SHE(d.features, d.network.head),
    "gen": lambda ood, d: ood.GEN(d, gamma=0.1, M=100),
    "entropy": lambda ood, d: ood.Entropy(d),
    "nnguide": lambda ood, d: ood.NNGuide(d.features, d.network.head, k=10),
    "scale": lambda ood, d: _on_features(ood.SCALE, d, percentile=0.85),
}
"""For each post-hoc method how it is built from the module `pytorch_ood.detector` and a detector.

The settings are the defaults of OpenOOD, and of the papers where OpenOOD has none:

- openmax: tails of 20 images, the 3 highest logits revised, Euclidean distance of logits;
- odin, mahalanobis_odin: step 0.0014 on pixels in [0, 1], which is what the papers mean by dividing the step in
  normalized pixels by the standard deviation; temperature 1000;
- mahalanobis_normalized: of features divided by their length, as Mahalanobis++ (Mueller & Hein 2025) has it. Outlier
  exposure gives OOD images short features, which without that lie between those of ID images;
- react, dice: the threshold is the 90th percentile; ash: ASH-S, the highest 10 % of the features stay; scale: of 15 %;
- knn: distance to the 50th neighbour (the last, if there are fewer images) among normalized features;
  nnguide: 10 neighbours among all images;
- gram: orders 1 to 5 at the stem and each stage; multi_mahalanobis: the sum over the same;
- gradnorm: gradient of the weights of the head at temperature 1;
- vim: 1000 principal dimensions from 1500 features on, 512 above 512, else half of the features;
- gen: gamma 0.1, the 100 likeliest classes.
"""
