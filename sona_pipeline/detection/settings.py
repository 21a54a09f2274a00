"""Settings of asking a detector about image files, of calibrating it, and of exporting it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Gt, Le, Lt

from sona_pipeline.common.settings import Argument, OneOf


@dataclass(frozen=True)
class ClassifierSettings:
    """A classifier that was trained elsewhere, and is kept with its weights and its head."""

    classifier: str | None = None
    """Classifier to keep and fine-tune: a detector, or an image classifier of transformers or timm, by folder or Hub
    id; or timm:NAME=FILE, with weights in safetensors."""
    classifier_labels: Path | None = None
    """File with the names of its classes, a line each in the order of its logits, where they are not beside it."""
    classifier_size: Annotated[int, Ge(8)] | None = None
    """Side in pixels of its images, where that is not beside it."""
    classifier_mean: str | None = None
    """Mean of red, green and blue in [0, 1] that its images are normalized by, as 0.5 or 0.485,0.456,0.406, where that
    is not beside it."""
    classifier_std: str | None = None
    """Standard deviation of the same."""


@dataclass(frozen=True)
class AskSettings:
    """Which images a detector is asked about, and how it answers."""

    images: Annotated[tuple[Path, ...], Argument()]
    """Image files, or folders of images."""
    detector: str
    """Folder of the detector, or its id on the Hub."""
    json: bool = False
    """Print a JSON object a line instead of a table."""
    summary: bool = False
    """Print the share that is flagged by class and by day of the files, against what calibration promises: as a table
    instead of that of the images, or as a last line of JSON."""
    cam: Path | None = None
    """Folder for Grad-CAM pictures of what the score looks at."""
    batch_size: Annotated[int, Ge(1)] = 64
    """Images at once."""
    device: str | None = None
    """'cpu', 'cuda', ... (an accelerator if there is one)."""


@dataclass(frozen=True)
class CalibrationSettings:
    """Which detector gets a new threshold, and what the threshold is to do."""

    detector: Annotated[str, Argument()]
    """Folder of the detector; or with OUTPUT its id on the Hub, or a classifier of transformers or timm, by folder or
    id."""
    id_rate: Annotated[float, Gt(0), Lt(1)] | None = None
    """Share of the images that is accepted (0.95 by default)."""
    false_alarms: Annotated[float, Gt(0), Lt(1)] | None = None
    """Share of the images that is flagged, instead of ID_RATE."""
    per_class: bool = False
    """Also a threshold for each class that enough images are taken for: 20, and 1 / FALSE_ALARMS."""
    output: Path | None = None
    """Folder for a copy of the detector, instead of new settings in its own."""
    batch_size: Annotated[int, Ge(1)] = 64
    """Images at once."""
    device: str | None = None
    """'cpu', 'cuda', ... (an accelerator if there is one)."""


def wanted_rate(settings: CalibrationSettings) -> float:
    """The share of images that is to be accepted; ValueError if it is given in both ways."""
    if settings.false_alarms is None:
        return 0.95 if settings.id_rate is None else settings.id_rate
    if settings.id_rate is not None:
        raise ValueError("--id-rate and --false-alarms exclude each other: give one of them")
    return round(1 - settings.false_alarms, 12)


EXPORT_SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
"""Formats of an exported detector, with the suffixes of their files."""
EXPORT_DTYPES = ("float32", "float16")
ONNX_FILE = "model.onnx"
"""What the ONNX file of a detector is called on the Hub."""
OPSET = 18
"""Of ONNX files where nobody says another: the lowest that torch exports, which the most runtimes read."""


@dataclass(frozen=True)
class ExportSettings:
    """What an exported detector is like."""

    detector: Annotated[str, Argument()]
    """Folder of the detector, or its id on the Hub."""
    output: Path
    """File to write, whose name ends in .onnx or .pt2 by its format; one that is there is replaced."""
    format: Annotated[str, OneOf(EXPORT_SUFFIXES)] = "onnx"
    """'onnx', or 'torch' for a program of `torch.export`."""
    opset: Annotated[int, Ge(OPSET), Le(23)] = OPSET
    """Version of the operators of an ONNX file."""
    dtype: Annotated[str, OneOf(EXPORT_DTYPES)] = "float32"
    """Of weights and computation: 'float16' halves the file, and changes scores a little. Inputs and outputs stay."""
    is_ood: bool = True
    """Give the verdict `is_ood`, which takes a threshold; without it only logits, probabilities and score."""
