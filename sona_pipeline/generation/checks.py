"""Quality checks of outliers: a number each, written beside the outlier, and bounds that leave outliers out."""

from __future__ import annotations

import math
import operator
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from sona_pipeline.common.files import read_text
from sona_pipeline.common.loading import loading
from sona_pipeline.common.names import expanded
from sona_pipeline.data.class_names import normal, spoken
from sona_pipeline.data.outlier_set import FINGERPRINT
from sona_pipeline.detection.detector import Detector, load_detector


class Made(NamedTuple):
    """Sources and outliers of a batch: pixels `[B, C, H, W]` in [0, 1], and scaled latents `[B, c, h, w]`."""

    sources: torch.Tensor
    outliers: torch.Tensor
    source_latents: torch.Tensor
    outlier_latents: torch.Tensor


def latent_distance(made: Made) -> torch.Tensor:
    """Root mean square of (outlier - source) over the VAE's scaled latents; 0 is unchanged, unrelated images ~1.4."""
    return (made.outlier_latents.float() - made.source_latents.float()).flatten(1).square().mean(dim=1).sqrt()


def contrast(made: Made) -> torch.Tensor:
    """Standard deviation of the outlier's values within its channels, in [0, 0.5]; 0 is an empty image."""
    return made.outliers.flatten(2).std(dim=2, correction=0).amax(dim=1)


def saturation(made: Made) -> torch.Tensor:
    """Share of the outlier's values that are black or white to the last, beyond that of its source, in [0, 1]."""
    outliers, sources = (
        ((pixels < 0.5 / 255) | (pixels > 254.5 / 255)).float().flatten(1).mean(dim=1)
        for pixels in (made.outliers, made.sources)
    )
    return (outliers - sources).clamp(min=0)


CHECKS: dict[str, Callable[[Made], torch.Tensor]] = {
    "latent_distance": latent_distance,
    "contrast": contrast,
    "saturation": saturation,
}
"""The checks that need nothing but the images; each gives `[B]` numbers."""

SOURCE_CONFIDENCE, CONFIDENCE, ID_QUANTILE = BY_CLASSIFIER = ("source_confidence", "confidence", "id_quantile")
"""The checks that a classifier makes: its probability that the outlier shows the class of its source; that of the class
that it takes it for; and, by a detector, the share of ID validation images that have a lower score."""


def run_checks(made: Made) -> list[dict[str, float | str]]:
    """The results of all checks, and the fingerprint, of each outlier."""
    columns = {name: check(made).tolist() for name, check in CHECKS.items()}
    rows = [dict(zip(columns, (round(x, 5) for x in values))) for values in zip(*columns.values())]
    return [row | {FINGERPRINT: mark} for row, mark in zip(rows, fingerprints(made.outliers))]


def fingerprints(pixels: torch.Tensor) -> list[str]:
    """The difference hash of images `[B, C, H, W]`: 36 hex digits, the same for images that look nearly the same.

    The image is averaged to 9 x 9 grey values; row by row, 72 bits say whether a value is clearly below its right
    neighbour, and 72 more whether it is clearly below the one under it.
    """
    grey = pixels.float().mean(dim=1, keepdim=True).cpu()  # not every accelerator pools sizes that 9 does not divide
    grey = torch.nn.functional.adaptive_avg_pool2d(grey, 9)[:, 0]
    steps = grey[:, :, 1:] - grey[:, :, :-1], grey[:, 1:] - grey[:, :-1]
    bits = torch.cat([(step > 2 / 255).flatten(1) for step in steps], dim=1).long().tolist()
    return [f"{int(''.join(map(str, row)), 2):036x}" for row in bits]


@dataclass(frozen=True)
class Bound:
    """A rule such as `latent_distance<0.3`: outliers that it holds for, or whose result is NaN, are rejected."""

    check: str
    sign: str
    limit: float

    @classmethod
    def parse(cls, text: str) -> Bound:
        """The bound in "CHECK<NUMBER" or "CHECK>NUMBER"; ValueError for anything else."""
        names = (*CHECKS, *BY_CLASSIFIER)
        found = re.fullmatch(r"\s*(\w+)\s*([<>])\s*([-+.\deE]+)\s*", text)
        try:
            name, sign, limit = (found[1], found[2], float(found[3])) if found else ("", "", math.nan)
            if name not in names or not math.isfinite(limit):
                raise ValueError
        except ValueError:
            raise ValueError(
                f"{text!r} is no bound: give CHECK<NUMBER or CHECK>NUMBER, with a check of {names}, or a filter of"
                f" {tuple(FILTERS)}"
            ) from None
        return cls(name, sign, limit)

    def reason(self, row: Mapping) -> str | None:
        """Why an outlier with these results is rejected; None if it is not."""
        value = row[self.check]
        is_good = {"<": operator.ge, ">": operator.le}[self.sign](value, self.limit)
        return None if is_good else f"{self.check} {value:.4g} {self.sign} {self.limit:g}"


FILTERS: dict[str, tuple[Bound, ...]] = {
    "rodeo": (Bound(SOURCE_CONFIDENCE, ">", 0.5),),
    "bad-ood": (Bound(CONFIDENCE, "<", 0.3), Bound(CONFIDENCE, ">", 0.5)),
    "gcos": (Bound(ID_QUANTILE, "<", 0.95), Bound(ID_QUANTILE, ">", 0.99)),
}
"""Filters of other methods by name: RODEO (Mirzaei et al. 2024) leaves out what a classifier still takes for the class
of its source; Bad-OOD keeps a middle band of confidence; GCOS keeps a shell, of scores between two quantiles of the ID
images, by the detector's own score where the paper has the Mahalanobis distance."""


def bounds_of(texts: Sequence[str]) -> list[Bound]:
    """The bounds that names of `FILTERS` and texts such as "latent_distance<0.3" stand for.

    Raises:
        ValueError: a text is neither.
    """
    return [bound for text in texts for bound in FILTERS.get(text.strip().lower(), ()) or (Bound.parse(text),)]


def checks_asked(texts: Sequence[str]) -> set[str]:
    """Names of the checks that these bounds and filters are on; errors as of `bounds_of`."""
    return {bound.check for bound in bounds_of(texts)}


Classifier = Callable[[Sequence[Image.Image], Sequence[str]], list[dict[str, float]]]
"""Images and their source classes to checks by name, those of `BY_CLASSIFIER` that it can make."""


def load_classifier(
    name: str,
    class_names: Mapping[str, Sequence[str]],
    device: str | torch.device = "cpu",
    asked: Collection[str] = (),
) -> Classifier:
    """A classifier for the checks of `BY_CLASSIFIER`; one of transformers gives no `id_quantile`.

    A class may stand for several of the classifier's, as "crane" does for ImageNet's bird and its machine: then its
    probability is the sum of theirs.

    Args:
        name: folder of a detector that `sona train` wrote, or an image classifier of transformers (folder or Hub id).
        class_names: the ID classes, with the names that the classifier may call them by.
        device: that it runs on.
        asked: checks that it has to make.

    Raises:
        FileNotFoundError: there is no such classifier.
        ValueError: it cannot be loaded, does not know one of the classes, has no names for its own, or cannot make a
            check that is asked for.
    """
    name = str(expanded(name))
    config = Path(name) / "config.json"
    if config.exists() and '"network"' in read_text(config):
        detector = load_detector(name, device)
        if ID_QUANTILE in asked and detector.id_quantiles is None:
            raise ValueError(
                f"`{ID_QUANTILE}` needs a calibrated detector, and {name} is not: train it with an --id-rate"
            )
        return _detector_checks(detector, name, class_names)
    if ID_QUANTILE in asked:
        raise ValueError(f"`{ID_QUANTILE}` needs a detector of `sona train`, and {name} is another classifier")
    from transformers import pipeline

    with loading(name, "image classifier"):
        model = pipeline("image-classification", model=name, device=device, model_kwargs={"use_safetensors": True})
    labels = _labels_of(model.model.config, name)
    indices_of = _matching(labels, name, class_names)
    model.model.config.id2label = {index: str(index) for index in range(len(labels))}  # names need not be unique

    def checks(images: Sequence[Image.Image], classes: Sequence[str]) -> list[dict[str, float]]:
        answers = model([image.convert("RGB") for image in images], top_k=len(labels))
        shares = [{int(one["label"]): one["score"] for one in answer} for answer in answers]
        return [
            {SOURCE_CONFIDENCE: min(1.0, sum(share[i] for i in indices_of[one])), CONFIDENCE: max(share.values())}
            for share, one in zip(shares, classes)
        ]

    return checks


def _labels_of(config: Any, classifier: str) -> list[str]:
    """The names of a transformers classifier's classes by their indices; what `label2id` says does not count."""
    labels = [str(config.id2label.get(index, f"LABEL_{index}")) for index in range(config.num_labels)]
    if all(re.fullmatch(r"LABEL_\d+", label) for label in labels):
        raise ValueError(
            f"the classifier {classifier} has no names for its {len(labels)} classes: write them into `id2label` of its"
            " config.json"
        )
    return labels


def _detector_checks(detector: Detector, name: str, class_names: Mapping[str, Sequence[str]]) -> Classifier:
    indices_of, device = _matching(detector.classes, name, class_names), next(detector.parameters()).device

    @torch.no_grad()
    def checks(images: Sequence[Image.Image], classes: Sequence[str]) -> list[dict[str, float]]:
        logits, scores = detector.scored(detector.pixels(images).to(device))
        found = [
            {SOURCE_CONFIDENCE: min(1.0, share[indices_of[one]].sum().item()), CONFIDENCE: share.max().item()}
            for share, one in zip(logits.softmax(dim=1), classes)
        ]
        if detector.id_quantiles is not None:
            places = np.linspace(0, 1, 101)
            shares = [float(np.interp(score, detector.id_quantiles, places)) for score in scores.tolist()]
            found = [row | {ID_QUANTILE: share} for row, share in zip(found, shares)]
        return found

    return checks


def _matching(labels: Sequence[str], classifier: str, class_names: Mapping[str, Sequence[str]]) -> dict[str, list[int]]:
    """The classifier's classes that each ID class may be: those with all its names, else with the first one known."""
    whole, parts = defaultdict[str, list[int]](list), defaultdict[str, list[int]](list)
    for index, label in enumerate(labels):
        for form in {normal(label), normal(", ".join(spoken(label)))}:
            whole[form].append(index)
        for part in {normal(part) for part in (label, *spoken(label))}:
            parts[part].append(index)
    found = {}
    for name, names in class_names.items():
        ways = [whole.get(normal(name)), whole.get(normal(", ".join(names)))]
        ways += [parts.get(normal(word)) for word in (name, *names)]
        found[name] = next(filter(None, ways), [])
    if unknown := [name for name, indices in found.items() if not indices]:
        raise ValueError(f"the classifier {classifier} does not know the classes {unknown[:5]}: give one that does")
    return found
