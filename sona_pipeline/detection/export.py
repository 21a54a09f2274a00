"""Job: a detector in one file that needs this package no more: pixels in, logits, probabilities, score, verdict out."""

from __future__ import annotations

import copy
import io
import json
import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sona_pipeline.common.files import versions, write_bytes
from sona_pipeline.common.messages import brief
from sona_pipeline.common.names import expanded
from sona_pipeline.common.settings import check_ranges
from sona_pipeline.detection.detector import Detector, load_detector
from sona_pipeline.detection.settings import EXPORT_SUFFIXES, OPSET, ExportSettings

INPUT = "pixels"
OUTPUTS = ("logits", "probabilities", "score", "is_ood")
METADATA = "metadata.json"
"""File in a program of torch that says what the metadata of an ONNX file say."""
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
ONNX_BYTES = 2**31 - 2**24
"""Bytes of weights that an ONNX file holds, which is one protocol buffer, beside all else in it."""
TOLERANCE = 1e-4
"""How far a file in float32 may be from the detector, as a share of the largest logit where that is above 1."""


@dataclass(frozen=True)
class Exported:
    """A file that was written.

    Attributes:
        path: where it lies.
        size: its bytes.
        difference: the most by which its logits, probabilities and scores of random pixels differ from the detector's.
    """

    path: Path
    size: int
    difference: float


class Graph(nn.Module):
    """What an exported file computes.

    Args:
        detector: copied, and computed on the CPU.
        dtype: of weights and computation; the outputs are float32, and the neighbours float16, in any case.
        is_ood: whether there is a fourth output, which takes a threshold.
    """

    limits: torch.Tensor | None

    def __init__(self, detector: Detector, dtype: torch.dtype, is_ood: bool):
        super().__init__()
        self.detector = copy.deepcopy(detector).to("cpu", dtype).to(memory_format=torch.contiguous_format)
        if self.detector.neighbours is not None:
            self.detector.neighbours = self.detector.neighbours.half()  # as a detector keeps them
        self.eval().requires_grad_(False)
        limits = detector.thresholds if is_ood else None
        self.dtype = dtype
        self.register_buffer("limits", None if limits is None else torch.tensor([*map(_float32_below, limits)]))

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Logits and probabilities `[N, C]`, score `[N]` and verdict, bool `[N]`, of uint8 pixels `[N, 3, S, S]`."""
        logits, score = (found.float() for found in self.detector.scored(pixels.to(self.dtype) / 255))
        probabilities = logits.softmax(dim=1)
        if self.limits is None:
            return logits, probabilities, score
        is_known = (score > -math.inf) & (score <= self.limits[logits.argmax(dim=1)])
        return logits, probabilities, score, ~is_known


def export_detector(
    detector: Detector | str | Path,
    output: str | Path,
    format: str = "onnx",
    opset: int = OPSET,
    dtype: str = "float32",
    is_ood: bool = True,
) -> Exported:
    """Write a detector to one file, which other runtimes load without this package.

    Its input `pixels` is uint8 `[N, 3, S, S]`, red first, for any N: images as `Detector.one` scales and crops them.
    Its outputs are `logits` and `probabilities` `[N, C]`, `score` `[N]`, all float32, and `is_ood`, bool `[N]`. It
    carries what `metadata` says: an ONNX file as its metadata, every value as JSON, and a program of torch as its extra
    file metadata.json.

    Before it is put in its place, whole or not at all, it is read back and asked about random pixels.

    Args:
        detector: or its folder, or its id on the Hub.
        output: file whose name ends in .onnx or .pt2, by its format; one that is there is replaced.
        format: "onnx", or "torch" for a program of `torch.export`.
        opset: version of the operators of an ONNX file, 18 to 23.
        dtype: of weights and computation, "float32" or "float16".
        is_ood: whether to give the verdict.

    Raises:
        ValueError: the name ends otherwise or is a folder's, a package is missing, there is no threshold for a verdict,
            the weights are too large, the network cannot be exported, or the file says other things than the detector.
        OSError: there is no such detector, or the disk is full.
    """
    path = expanded(output)
    check_ranges(ExportSettings(str(path), path, format, opset, dtype, is_ood))
    _check_place(path, format)
    if format == "onnx":
        check_onnx_packages()
    own = load_detector(detector, "cpu") if isinstance(detector, (str, Path)) else copy.deepcopy(detector)
    own = own.to("cpu", torch.float32).eval()
    _check_detector(own, format, dtype, is_ood)
    texts = {key: json.dumps(value, ensure_ascii=False) for key, value in metadata(own, dtype).items()}
    write, answers = (_onnx_file, _onnx_answers) if format == "onnx" else (_torch_file, _torch_answers)
    with _quiet(), torch.no_grad():
        with _explained(own):
            content = write(_traced(Graph(own, getattr(torch, dtype), is_ood), own.image_size), opset, texts)
        pixels = np.random.default_rng(0).integers(0, 256, (3, 3, own.image_size, own.image_size), np.uint8)
        difference = _difference(own, pixels, answers(content, pixels), exact=dtype == "float32")
    write_bytes(path, content)
    return Exported(path, len(content), difference)


def metadata(detector: Detector, dtype: str = "float32") -> dict[str, Any]:
    """What an exported file says of its detector, of how images become its pixels, and of what made it.

    An image is turned upright and made RGB, transparent parts on white; its middle square is scaled to `resize` pixels
    a side by the filter `resample`, and the middle `image_size` of these are taken. Mean, standard deviation and order
    of the channels are for information: the file applies them itself.
    """
    side, settings = detector.image_size, detector.settings
    return {
        "classes": detector.classes,
        "image_size": side,
        "crop_pct": detector.crop_pct,
        "resize": round(side / detector.crop_pct),
        "resample": "lanczos",
        "mean": list(settings["mean"]),
        "std": list(settings["std"]),
        "channel_order": detector.channel_order,
        "score": detector.score,
        "temperature": detector.temperature,
        "threshold": detector.threshold,
        "class_thresholds": detector.class_thresholds,
        "dtype": dtype,
        "versions": {name: number for name, number in versions().items() if name in ("sona-pipeline", "torch")},
    }


def check_onnx_packages() -> None:
    """Raise ValueError if a package that ONNX files are made and tried with is missing."""
    if missing := [name for name in ONNX_PACKAGES if find_spec(name) is None]:
        raise ValueError(
            f"ONNX files take the packages {', '.join(ONNX_PACKAGES)}, and there is no {' and no '.join(missing)}:"
            ' pip install "sona-pipeline[export]"'
        )


def _check_place(path: Path, format: str) -> None:
    suffix = EXPORT_SUFFIXES[format]
    if path.is_dir():
        raise ValueError(f"the output {path} is a folder: name a file, such as {path / f'detector{suffix}'}")
    if path.suffix.lower() != suffix:
        raise ValueError(
            f"the output is {path}, but the name of a file of the format {format!r} has to end in {suffix}"
        )


def _check_detector(detector: Detector, format: str, dtype: str, is_ood: bool) -> None:
    if is_ood and detector.threshold is None:
        raise ValueError(
            "the detector has no threshold, which the verdict takes: choose one by `Detector.calibrated`, or export it"
            " without `is_ood` (--no-is-ood)"
        )
    size = sum(weight.numel() for weight in detector.parameters()) * getattr(torch, dtype).itemsize
    if format == "onnx" and size > ONNX_BYTES:
        ways = "use the format 'torch'" + (", or float16" if dtype == "float32" and size / 2 <= ONNX_BYTES else "")
        raise ValueError(f"the weights take {size / 1e9:.1f} GB, but an ONNX file holds 2 GB at most: {ways}")


def _float32_below(value: float) -> float:
    """The largest float32 that is not above `value`: a score in float32 is above the one just if above the other."""
    nearest = np.float32(value)
    return float(nearest if float(nearest) <= value else np.nextafter(nearest, np.float32(-np.inf)))


def _traced(graph: Graph, side: int) -> torch.export.ExportedProgram:
    """The graph as a program of torch for any number of images, without the places of its source files."""
    example = torch.zeros(2, 3, side, side, dtype=torch.uint8)
    program = torch.export.export(graph, (example,), dynamic_shapes=({0: torch.export.Dim("N")},), strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    return program


def _onnx_file(program: torch.export.ExportedProgram, opset: int, texts: dict[str, str]) -> bytes:
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    names = OUTPUTS[: len(program.graph_signature.user_outputs)]
    made = torch.onnx.export(
        program, input_names=[INPUT], output_names=names, opset_version=opset, dynamo=True, verbose=False
    )
    if made is None or made.model.opset_imports[""] != opset:
        raise ValueError(f"opset {opset} cannot be had")
    ClearMetadataAndDocStringPass()(made.model)
    made.model.metadata_props.update(texts)
    return made.model_proto.SerializeToString()


def _torch_file(program: torch.export.ExportedProgram, opset: int, texts: dict[str, str]) -> bytes:
    content = io.BytesIO()
    text = "".join(["{\n", ",\n".join(f'  "{key}": {value}' for key, value in texts.items()), "\n}\n"])
    torch.export.save(program, content, extra_files={METADATA: text})
    return content.getvalue()


def _onnx_answers(content: bytes, pixels: np.ndarray) -> list[np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(None, {INPUT: pixels})


def _torch_answers(content: bytes, pixels: np.ndarray) -> list[np.ndarray]:
    program = torch.export.load(io.BytesIO(content))
    return [found.numpy() for found in program.module()(torch.from_numpy(pixels))]


def _difference(detector: Detector, pixels: np.ndarray, found: list[np.ndarray], exact: bool) -> float:
    """The most by which answers differ from the detector's; ValueError if that is no rounding, or not finite."""
    logits, score = detector.scored(torch.from_numpy(pixels).float() / 255)
    own = [logits, logits.softmax(dim=1), score]
    difference = float(np.max([np.abs(mine.numpy() - theirs).max() for mine, theirs in zip(own, found)]))
    if not difference <= (TOLERANCE * max(1.0, logits.abs().max().item()) if exact else np.finfo(np.float32).max):
        raise ValueError(
            f"the file says other things than the detector (by up to {difference:.2g}), and is not written: "
            + ("export it in another format" if exact else "export it in float32")
        )
    return difference


@contextmanager
def _explained(detector: Detector) -> Iterator[None]:
    try:
        yield
    except (MemoryError, OSError):
        raise
    except ImportError as error:  # torch asks for a newer package
        raise ValueError(
            f"the packages for ONNX files are too old for this torch ({brief(error)}): pip install --upgrade"
            f" {' '.join(ONNX_PACKAGES)}"
        ) from error
    except Exception as error:  # exporters have errors of many kinds
        network = detector.settings["network"]
        raise ValueError(f"the network {network} cannot be exported so ({brief(error)}): try another format") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what exporters print, log and warn of."""
    earlier = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(earlier)
