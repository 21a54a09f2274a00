"""The detector: a classifier that also says how unfamiliar an image is."""

from __future__ import annotations

import contextlib
import inspect
import io
import math
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

import torch
from huggingface_hub import ModelHubMixin, PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError
from PIL import Image
from safetensors import SafetensorError
from torch import nn
from torchvision.transforms.v2.functional import pil_to_tensor

from sona_pipeline.common.devices import usable_device
from sona_pipeline.common.disk import check_readable, disk_explained, loosen, make_folder, sync, sync_all
from sona_pipeline.common.files import read_json
from sona_pipeline.common.messages import brief
from sona_pipeline.common.names import expanded
from sona_pipeline.data.imaging import fit, turned, upright, with_short_side
from sona_pipeline.detection import networks
from sona_pipeline.detection.config import check_config
from sona_pipeline.detection.preprocessing import CHANNELS, IMAGENET_MEAN, IMAGENET_STD, ordered
from sona_pipeline.detection.scores import FEATURE_SCORES, OWN_SCORES, SCORES
from sona_pipeline.detection.scores.of_features import K
from sona_pipeline.detection.scores.of_logits import energy
from sona_pipeline.detection.settings import ONNX_FILE
from sona_pipeline.detection.thresholds import check_rate, threshold_at, thresholds_by_class

Picture = Image.Image | str | Path
_Model = TypeVar("_Model", bound=ModelHubMixin)
UNCALIBRATED = {"threshold": None, "id_quantiles": None, "id_rate": None, "class_thresholds": None}
"""The settings that `Detector.calibrated` makes, as they are before."""
WITHOUT_NEIGHBOURS = {"neighbours": None, "nearest": K, "score_parts": None}
"""Those that `keep_neighbours` makes."""


@dataclass(frozen=True)
class Detection:
    """What the detector says of one image.

    Attributes:
        label: the most likely class.
        confidence: its softmax probability.
        energy: energy score, higher = more OOD.
        score: the detector's own score, which the threshold is for; the energy unless the detector has another one.
        is_ood: whether the score is above the threshold of that class; None if the detector has none.
    """

    label: str
    confidence: float
    energy: float
    score: float
    is_ood: bool | None


class Detector(nn.Module, PyTorchModelHubMixin, library_name="sona-pipeline", tags=["out-of-distribution-detection"]):
    """Image classifier with an OOD score and a threshold; weights in safetensors, settings in config.json.

    Called with images, it says what they show and whether it has seen the like; called with a tensor, it is a plain
    classifier that gives logits:

        detector = Detector.from_pretrained("detector/")
        detector(["cat.jpg", Image.open("dog.png")])   # [Detection(label="cat", ..., is_ood=False), ...]
        detector(detector.pixels([image]))             # logits [1, C]

    Args:
        classes: names of the classes, in the order of the logits.
        network: of `networks.build`: "resnet8", "resnet18", "timm:NAME", "transformers:NAME", "own", ...
        image_size: side in pixels of what the network sees.
        crop_pct: share of the short side of an image that is kept, the rest being cropped; in (0, 1].
        mean, std: of red, green and blue in [0, 1], by which images are normalized.
        score: what the threshold is for, a name of `scores.OWN_SCORES`.
        temperature: T of the score.
        threshold: score above which an image is flagged as OOD; None until it is calibrated.
        id_quantiles: the 0th, 1st, ... 100th percentile of the scores of ID validation images, to compare scores with;
            None until the detector is calibrated.
        network_config: of a transformers network, so that it can be built without looking it up; or which layer of a
            module is the head.
        channel_order: "RGB"; or "BGR" for a network that is given blue first, "L" for one that is given grey images,
            "RGBA" for one with a fourth channel, which is 1.
        feature_scale: standard deviation that the features of each image are given before the head, with mean 0; None
            leaves them as they are.
        heads: 1, or 2 for a network with a second head, which the score "mcd" compares with the first.
        id_rate: share of ID images that the threshold was chosen to accept; None if that is not known.
        class_thresholds: for each class the threshold of images that are taken for it, or None for the common one.
        neighbours: how many training images there are features of, for the score "energy+knn"; see `keep_neighbours`.
        nearest: which of them counts, by distance.
        score_parts: mean and standard deviation on ID images of the "energy" and the "knn" of that score.
        module: of the network "own": a classifier of the user's, see `as_detector`. It is no part of config.json, and
            has to be given again: `Detector.from_pretrained("detector/", module=Classifier())`.

    Raises:
        ValueError: no such network, score or order of channels, the temperature is not above 0, there are other numbers
            of heads, thresholds of other classes than these or without a common one, or no neighbours for a score.
    """

    mean: torch.Tensor
    std: torch.Tensor
    neighbours: torch.Tensor | None
    _hub_mixin_config: dict
    _with_onnx = False

    def __init__(
        self,
        classes: list[str],
        network: str = "resnet8",
        image_size: int = 32,
        crop_pct: float = 1.0,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        score: str = "energy",
        temperature: float = 1.0,
        threshold: float | None = None,
        id_quantiles: list[float] | None = None,
        network_config: dict | None = None,
        channel_order: str = "RGB",
        feature_scale: float | None = None,
        heads: int = 1,
        id_rate: float | None = None,
        class_thresholds: list[float | None] | None = None,
        neighbours: int | None = None,
        nearest: int = K,
        score_parts: dict[str, list[float]] | None = None,
        module: nn.Module | None = None,
    ):
        super().__init__()
        if score not in OWN_SCORES:
            raise ValueError(f"the score is {score!r}, but has to be one of {sorted(OWN_SCORES)}")
        if score in FEATURE_SCORES and not (neighbours and score_parts):
            raise ValueError(no_neighbours(score))
        if not temperature > 0:
            raise ValueError(f"the temperature is {temperature}, but has to be above 0")
        if channel_order not in CHANNELS:
            raise ValueError(f"the order of channels is {channel_order!r}, but has to be one of {sorted(CHANNELS)}")
        if heads not in (1, 2):
            raise ValueError(f"the number of heads is {heads}, but has to be 1 or 2")
        if class_thresholds is not None and (threshold is None or len(class_thresholds) != len(classes)):
            raise ValueError(
                f"there are {len(class_thresholds)} `class_thresholds` and the threshold {threshold} for {len(classes)}"
                " classes, but there has to be one a class, and a common one"
            )
        self.id_rate, self.class_thresholds = id_rate, class_thresholds
        self.classes, self.image_size, self.crop_pct = list(classes), image_size, crop_pct
        self.score, self.temperature, self.threshold = score, temperature, threshold
        self.id_quantiles, self.channel_order = id_quantiles, channel_order
        self.network = networks.build(
            network,
            len(self.classes),
            image_size,
            module=module,
            config=network_config,
            channels=CHANNELS[channel_order],
            feature_scale=feature_scale,
            heads=heads,
        )
        self._hub_mixin_config = (self._hub_mixin_config or {}) | {"network_config": self.network.config}
        self._hub_mixin_config.pop("module", None)
        self.nearest, self.score_parts, width = nearest, score_parts, self.network.head.in_features
        self.register_buffer("neighbours", torch.zeros(neighbours, width, dtype=torch.half) if neighbours else None)
        for name, value in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(value).view(1, 3, 1, 1), persistent=False)

    @classmethod
    def _load_as_pickle(cls, model: _Model, model_file: str, map_location: str, strict: bool) -> _Model:
        raise ValueError(f"{model_file} is a pickle, and is not loaded: save the detector as safetensors")

    @classmethod
    def _load_as_safetensor(cls, model: _Model, model_file: str, map_location: str, strict: bool) -> _Model:
        """All weights or none: the mixin would leave those that the file lacks at random."""
        return super()._load_as_safetensor(model, model_file, map_location, strict=True)

    def _save_pretrained(self, save_directory: Path) -> None:
        super()._save_pretrained(save_directory)
        if self._with_onnx:
            from sona_pipeline.detection.export import export_detector

            export_detector(self, save_directory / ONNX_FILE, is_ood=self.threshold is not None)

    def push_to_hub(self, repo_id: str, *, onnx: bool = False, **options: Any) -> str:
        """Push the detector to the Hub, as `ModelHubMixin.push_to_hub` does; that has the other options.

        Args:
            repo_id: `owner/name`.
            onnx: put model.onnx beside it, see `export_detector`; otherwise one of an earlier push is taken away.
            options: `private`, `token`, `commit_message`, ...
        """
        self._with_onnx = onnx
        try:
            return super().push_to_hub(repo_id, **{"delete_patterns": ONNX_FILE} | options)
        finally:
            self._with_onnx = False

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.network.head.weight.device

    @property
    def settings(self) -> dict:
        """The arguments that this detector is built from; what config.json holds."""
        return dict(self._hub_mixin_config)

    @property
    def thresholds(self) -> list[float] | None:
        """For each class the threshold of images that are taken for it; None until the detector is calibrated."""
        common, own = self.threshold, self.class_thresholds or [None] * len(self.classes)
        return None if common is None else [common if one is None else one for one in own]

    @overload
    def __call__(self, images: torch.Tensor, with_features: Literal[False] = ...) -> torch.Tensor: ...

    @overload
    def __call__(self, images: torch.Tensor, with_features: Literal[True]) -> tuple[torch.Tensor, torch.Tensor]: ...

    @overload  # a path as a string is also an iterable of strings, and counts as one picture
    def __call__(self, images: Picture) -> Detection: ...  # type: ignore[overload-overlap]

    @overload
    def __call__(self, images: Iterable[Picture], batch_size: int = ...) -> list[Detection]: ...

    def __call__(self, images: Any, *args: Any, **kwargs: Any) -> Any:
        """Logits of a tensor, see `forward`; or what `stream` says of images or their paths, as a list or for one.

        Args:
            images: a tensor `[B, 3, H, W]` in [0, 1]; an image or the path of one; or several of these.
            args, kwargs: `with_features` for a tensor, `batch_size` for several images.

        Raises:
            OSError: an image cannot be read.
        """
        if isinstance(images, torch.Tensor):
            return super().__call__(images, *args, **kwargs)
        if isinstance(images, (Image.Image, str, Path)):
            return next(self.stream([images]))
        return list(self.stream(images, *args, **kwargs))

    def forward(
        self, pixels: torch.Tensor, with_features: bool = False
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Logits `[B, C]` of images `[B, 3, H, W]` in [0, 1]; on demand with the features `[B, D]` before the head."""
        normal = (pixels - self.mean) / self.std
        logits, features = self.network(ordered(normal, self.channel_order))
        return (logits, features) if with_features else logits

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Penultimate features `[B, D]` of images `[B, 3, H, W]` in [0, 1]."""
        return self(pixels, with_features=True)[1]

    def pixels(self, images: Iterable[Image.Image]) -> torch.Tensor:
        """Images as the tensor `[B, 3, H, W]` in [0, 1] that `forward` takes."""
        return torch.stack([self.one(image) for image in images]).float() / 255

    def whole(self, image: Image.Image) -> torch.Tensor:
        """An image, upright, scaled and not cropped: uint8 `[3, H, W]`, short side S / crop_pct; at most 16 : 1."""
        return pil_to_tensor(with_short_side(turned(image), round(self.image_size / self.crop_pct)))

    def one(self, image: Image.Image) -> torch.Tensor:
        """An image turned upright, scaled and cropped as the network sees it, uint8 `[3, S, S]`."""
        pixels, inner = pil_to_tensor(fit(turned(image), round(self.image_size / self.crop_pct))), self.image_size
        edge = (pixels.shape[1] - inner) // 2
        return pixels[:, edge : edge + inner, edge : edge + inner]

    def ood_score(
        self, logits: torch.Tensor, features: torch.Tensor | None = None, score: str | None = None
    ) -> torch.Tensor:
        """The detector's own score `[B]` of logits `[B, C]`; higher = more OOD.

        Args:
            logits: `[B, C]`.
            features: `[B, D]`, which only scores of `scores.FEATURE_SCORES` need.
            score: another one than the detector's own.

        Raises:
            ValueError: the score needs features, or neighbours that the detector does not keep.
        """
        score = score or self.score
        if score in SCORES:
            return SCORES[score](logits, self.temperature)
        if self.neighbours is None:
            raise ValueError(no_neighbours(score))
        if features is None:
            raise ValueError(f"the score {score!r} is of logits and features: give both, as `Detector.scored` does")
        kept = self.neighbours, self.nearest, self.score_parts
        return FEATURE_SCORES[score](logits, features, *kept, self.temperature)

    def scored(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits `[B, C]` of images `[B, 3, H, W]` in [0, 1], and the detector's own score `[B]`."""
        logits, features = self(pixels, with_features=True)
        return logits, self.ood_score(logits, features)

    def stream(self, images: Iterable[Picture], batch_size: int = 64) -> Iterator[Detection]:
        """What the detector says of each image, in order; images are taken from the iterable batch by batch.

        Args:
            images: of any size and mode, or paths.
            batch_size: images at once.

        Raises:
            OSError: an image cannot be read.
        """
        return (said for _, said in self.numbered(images, batch_size))

    @torch.no_grad()
    def numbered(self, images: Iterable[Picture], batch_size: int = 64) -> Iterator[tuple[int, Detection]]:
        """What `stream` gives, each after the number of its class: of classifiers of others, two may have one name."""
        self.eval()
        images, limits = iter(images), self.thresholds
        while batch := list(islice(images, batch_size)):
            pictures = [image if isinstance(image, Image.Image) else upright(image) for image in batch]
            logits, scores = self.scored(self.pixels(pictures).to(self.device))
            confidences, labels = logits.softmax(dim=1).max(dim=1)
            energies = energy(logits, self.temperature).tolist()
            for label, confidence, e, score in zip(labels.tolist(), confidences.tolist(), energies, scores.tolist()):
                is_ood = None if limits is None else not -math.inf < score <= limits[label]  # as where it is NaN
                yield label, Detection(self.classes[label], confidence, e, score, is_ood)

    def calibrated(
        self, id_scores: torch.Tensor, id_rate: float = 0.95, predicted: torch.Tensor | None = None
    ) -> Detector:
        """The same network with the threshold under which the share `id_rate` of the ID validation scores lies.

        The percentiles of these scores and the rate are kept, too.

        Args:
            id_scores: the detector's own scores `[N]` of ID images that were not trained on.
            id_rate: true-positive rate: share of ID images that is to be accepted, in (0, 1).
            predicted: class indices `[N]` that the detector gives these images; with them, there is a threshold for
                each class that has enough, see `thresholds.thresholds_by_class`.

        Raises:
            ValueError: there are no scores, some are not finite, the rate is out of its range, or no class has enough.
        """
        check_rate(id_rate)
        id_scores = id_scores.detach().cpu()
        if not len(id_scores) or not id_scores.isfinite().all():
            count = int((~id_scores.isfinite()).sum())
            raise ValueError(f"{count} of {len(id_scores)} ID scores are NaN or infinite: no threshold in them")
        own = None if predicted is None else thresholds_by_class(id_scores, predicted, self.classes, id_rate)
        return self.with_settings(
            threshold=threshold_at(id_scores, id_rate),
            id_quantiles=id_scores.double().quantile(torch.linspace(0, 1, 101, dtype=torch.double)).tolist(),
            id_rate=id_rate,
            class_thresholds=own,
        )

    def with_settings(self, **changes: Any) -> Detector:
        """A copy with other settings (`score`, `temperature`, `threshold`, ...) and the same weights.

        A `threshold` alone counts for all classes, and promises no rate.

        Raises:
            ValueError: there is no such score, it needs neighbours, or the temperature is not above 0.
        """
        if "threshold" in changes:
            changes = {"id_rate": None, "class_thresholds": None} | changes
        new = Detector(**self.settings | changes, module=self.network.own_module())
        weights = self.state_dict()
        if new.neighbours is None:
            weights.pop("neighbours", None)
        new.load_state_dict(weights)
        return new.train(self.training).to(self.device)


def no_neighbours(score: str) -> str:
    """What is wrong with a detector that keeps no features for a score that needs them."""
    return (
        f"the score {score!r} compares with training images, of which this detector keeps no features: train one with"
        f" it (--score {score}), or give it some by `keep_neighbours`"
    )


def save_detector(detector: Detector, folder: str | Path) -> None:
    """Write a detector as `Detector.save_pretrained` does, each file whole or not at all, its settings last.

    Args:
        detector: its weights go to model.safetensors, its settings to config.json.
        folder: made if it is not there.
    """
    folder = expanded(folder)
    make_folder(folder)
    with disk_explained(folder), tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as partial:
        detector.save_pretrained(partial)
        paths = sorted(Path(partial).iterdir(), key=lambda path: path.name == "config.json")
        for path in paths:
            loosen(path)
        sync_all(paths)
        (folder / "config.json").unlink(missing_ok=True)  # so that weights and settings never belong to two detectors
        for path in paths:
            os.replace(path, folder / path.name)
        sync(folder)


def load_detector(
    folder: str | Path, device: str | torch.device | None = None, module: nn.Module | None = None
) -> Detector:
    """The detector in a folder that `sona train` wrote, or on the Hub, ready to score.

    Args:
        folder: or Hub id.
        device: an accelerator by default, if there is one.
        module: of a detector whose network is a module of the user's: one of that class; its weights are replaced.

    Raises:
        FileNotFoundError: there is none.
        PermissionError: it may not be read.
        ValueError: its weights are a pickle, damaged or of another network, its settings are no settings of a
            detector, or there is no such device.
    """
    place = usable_device(device)
    folder = expanded(folder)
    _check_is_detector(folder)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # huggingface_hub prints where it loads from
            detector = Detector.from_pretrained(str(folder), module=module)
    except (OSError, EntryNotFoundError) as error:
        raise FileNotFoundError(f"the weights of {folder} cannot be read: {brief(error)}") from error
    except SafetensorError as error:
        raise ValueError(
            f"model.safetensors of {folder} is damaged: copy or download it again ({brief(error)})"
        ) from error
    except ValueError as error:
        raise ValueError(f"the detector in {folder} cannot be built: {brief(error)}") from error
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"weights and config.json of {folder} do not belong together: take both from one run ({brief(error)})"
        ) from error
    return detector.eval().to(place)


def training_record(folder: str | Path) -> dict[str, Any]:
    """What the training.json of a detector's folder says; nothing where there is none, as on the Hub."""
    path = expanded(folder) / "training.json"
    return read_json(path) if path.exists() else {}


def _check_is_detector(folder: str | Path) -> None:
    """Raise an error unless the folder, or what the Hub has under this id, has the settings of a detector."""
    path = Path(folder)
    check_readable(path, path / "config.json", path / "model.safetensors")
    if path.exists() and not (path / "config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no detector: give a folder that `sona train` wrote")
    if not path.exists() and not re.fullmatch(r"[\w.-]+/[\w.-]+", str(folder)):
        raise FileNotFoundError(f"{folder} does not exist: give a folder that `sona train` wrote, or a Hub id")
    try:
        file = path / "config.json" if path.exists() else Path(hf_hub_download(str(folder), "config.json"))
    except (OSError, EntryNotFoundError, HFValidationError) as error:
        raise FileNotFoundError(
            f"{folder} is neither a folder nor a detector on the Hub that can be had: {brief(error)}"
        ) from error
    check_config(file, inspect.signature(Detector.__init__).parameters, folder)
