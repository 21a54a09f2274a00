"""OpenOOD v1.5 (Zhang et al. 2023): its benchmarks as data, and our weights and outliers as it takes them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from sona_pipeline.common.files import write_with
from sona_pipeline.common.names import expanded
from sona_pipeline.data.image_set import ImageSet
from sona_pipeline.data.lists import list_classes, open_list
from sona_pipeline.data.set_files import IMAGE_LIST
from sona_pipeline.detection.detector import Detector
from sona_pipeline.evaluation.prepared import PreparedSet, as_stored

LISTS, CLASSIC, LARGE = "benchmark_imglist", "images_classic", "images_largescale"
"""Folders in OpenOOD's `data`: the image lists, the small images, and the large ones."""
RESIZE = {CLASSIC: 32 / 32, LARGE: 256 / 224}
"""To what short side OpenOOD scales the images of a benchmark, in sides of the square that it crops from them."""
UNLABELLED = ("validation_ood", "outliers")
"""Parts of a benchmark that have no ID images."""
AS_THEY_ARE = ("imagenet_c",)
"""Sets of images that OpenOOD takes as they are, since they are 224 x 224 pixels."""


@dataclass(frozen=True)
class ListedImages:
    """An image list, and the folder that its paths start from; both relative to OpenOOD's `data` folder."""

    path: str
    images: str


@dataclass(frozen=True)
class Benchmark:
    """The image lists of a benchmark, as OpenOOD's evaluation API takes them.

    Attributes:
        parts: "train", "validation" and "test" of the ID data; "validation_ood", OOD images by which parameters of
            scores are chosen; and, if there are some, "outliers": real outliers for methods with outlier exposure.
        groups: "near_ood", "far_ood" and "covariate", the test sets of each by name. The covariate-shifted sets show
            the ID classes in other circumstances (full-spectrum detection).
        resize: see `RESIZE`.
        download: what OpenOOD's download script calls the benchmark.
    """

    parts: Mapping[str, ListedImages]
    groups: Mapping[str, Mapping[str, ListedImages]]
    resize: float
    download: str


def open_part(name: str, root: str | Path, part: str) -> ImageSet:
    """One part of a benchmark's training, validation or ID test data.

    All ID data of a benchmark have the classes of its training list, in the order of their numbers, whatever folders
    the images lie in. Images are decoded, scaled and cropped as OpenOOD does it, see `PreparedSet`.

    Args:
        name: of `BENCHMARKS`.
        root: OpenOOD's `data` folder, which holds `benchmark_imglist` and the images.
        part: "train", "validation" or "test"; or "validation_ood" or "outliers", which are unlabelled.

    Raises:
        ValueError: there is no such benchmark or part, or a list is damaged.
        FileNotFoundError: a list or its first image is missing; the message says how to get it.
    """
    benchmark = _benchmark(name)
    if part not in benchmark.parts:
        raise ValueError(f"{name} has no part {part!r}: choose one of {list(benchmark.parts)}")
    names = {} if part in UNLABELLED else list_classes(_list_file(benchmark, root, benchmark.parts["train"]))
    return _open(benchmark, root, benchmark.parts[part], names)


def open_group(name: str, root: str | Path, group: str) -> dict[str, ImageSet]:
    """The test sets of one group of a benchmark by name.

    OOD sets are unlabelled; covariate-shifted ID sets have the classes of the training list. Images are decoded, scaled
    and cropped as OpenOOD does it, see `PreparedSet`.

    Args:
        name: of `BENCHMARKS`.
        root: OpenOOD's `data` folder, which holds `benchmark_imglist` and the images.
        group: "near_ood", "far_ood" or "covariate"; of the last, some benchmarks have none.

    Raises:
        ValueError: there is no such benchmark or group, or a list is damaged.
        FileNotFoundError: a list or its first image is missing; the message says how to get it.
    """
    benchmark = _benchmark(name)
    if group not in benchmark.groups:
        raise ValueError(f"there is no group {group!r} of test sets: choose one of {list(benchmark.groups)}")
    is_id = group == "covariate" and benchmark.groups[group]
    names = list_classes(_list_file(benchmark, root, benchmark.parts["train"])) if is_id else {}
    return {
        kind: _open(benchmark, root, listed, names, as_they_are=kind in AS_THEY_ARE)
        for kind, listed in benchmark.groups[group].items()
    }


def lists_of_tests(name: str, root: str | Path) -> list[Path]:
    """The image lists of a benchmark's ID and OOD test sets."""
    benchmark = _benchmark(name)
    listed = [benchmark.parts["test"], *(one for group in benchmark.groups.values() for one in group.values())]
    return [expanded(root) / one.path for one in listed]


def resnet18_state_dict(detector: Detector) -> dict[str, torch.Tensor]:
    """The weights of a "resnet18" detector under the names that OpenOOD's networks load with `strict=True`.

    Up to 64 px these are the names of its ResNet18_32x32, above those of its ResNet18_224x224, which are torchvision's.
    The latter pools 7 x 7 feature maps, so its logits are ours for images of 224 px.

    The normalization is no part of it: OpenOOD has to normalize images by the `mean` and `std` of the detector. By
    default these are what OpenOOD calls `normalization_type: imagenet`; for its CIFAR benchmarks it takes others, so
    train the detector with those (`normalization_dict` of OpenOOD), or change its `dataset.normalization_type`.

    Raises:
        ValueError: the detector has another network, scales its features, or has two heads.
    """
    weights = detector.network.state_dict()
    return {theirs: weights[ours].cpu().contiguous() for ours, theirs in _names(detector).items()}


def save_resnet18(detector: Detector, path: str | Path) -> None:
    """Write `resnet18_state_dict` as a checkpoint that OpenOOD loads ("best.ckpt"), whole or not at all.

    Raises:
        ValueError: the detector has another network, scales its features, or has two heads.
    """
    weights = resnet18_state_dict(detector)
    write_with(expanded(path), lambda partial: torch.save(weights, partial))


def oe_config(folder: str | Path) -> str:
    """YAML text of a configuration by which OpenOOD takes an outlier set for outlier exposure (`dataset.oe`).

    Give it to OpenOOD's `main.py` where `configs/datasets/<benchmark>/<benchmark>_oe.yml` stands, of which it has the
    batch size. The data set keeps its name, by which OpenOOD chooses its augmentation.

    Raises:
        FileNotFoundError: there is no outlier set of image files.
    """
    folder = expanded(folder).resolve()
    if not (folder / IMAGE_LIST).is_file():
        raise FileNotFoundError(f"{folder} has no {IMAGE_LIST}: give an outlier set of the format 'folder'")
    return f"""\
dataset:
  split_names: [train, oe, val, test]
  oe:
    dataset_class: ImglistDataset
    data_dir: {json.dumps(str(folder), ensure_ascii=False)}
    imglist_pth: {json.dumps(str(folder / IMAGE_LIST), ensure_ascii=False)}
    batch_size: 256
    shuffle: True
    interpolation: bilinear
"""


def _benchmark(name: str) -> Benchmark:
    if name not in BENCHMARKS:
        raise ValueError(f"no benchmark named {name!r}: choose one of {list(BENCHMARKS)}")
    return BENCHMARKS[name]


def _way_to_get(root: str | Path, data: str) -> str:
    script = f"python scripts/download/download.py --contents datasets --save_dir {root} --datasets {data}"
    return f"in a clone of OpenOOD, `{script}` gets it"


def _list_file(benchmark: Benchmark, root: str | Path, listed: ListedImages) -> Path:
    path = expanded(root) / listed.path
    if not path.is_file():
        how = _way_to_get(root, benchmark.download)
        raise FileNotFoundError(f"the image list {path} is missing: {how}, if no older {LISTS} is in the way")
    return path


def _open(
    benchmark: Benchmark,
    root: str | Path,
    listed: ListedImages,
    names: Mapping[int, str],
    as_they_are: bool = False,
) -> ImageSet:
    path, folder = _list_file(benchmark, root, listed), expanded(root) / listed.images
    images = open_list(path, folder, names)
    if not (folder / images.keys[0]).is_file():
        data = images.keys[0].partition("/")[0]
        how = _way_to_get(root, f"{data} --dataset_mode dataset")
        also = "; ImageNet's training images come from image-net.org (ILSVRC 2012)" if data == "imagenet_1k" else ""
        raise FileNotFoundError(f"{folder / images.keys[0]}, the first image of {path.name}, is missing: {how}{also}")
    return PreparedSet(
        images.keys,
        images.labels,
        images.classes,
        lambda i: as_stored(folder / images.keys[i]),
        resize=None if as_they_are else benchmark.resize,
    )


def _names(detector: Detector) -> dict[str, str]:
    """OpenOOD's name of every weight of a ResNet-18 by its name in our network."""
    body = detector.network.body
    if not isinstance(body, nn.Sequential) or not hasattr(body, "layer4"):
        raise ValueError("the network of the detector is not 'resnet18', the only one that OpenOOD has as well")
    if detector.network.feature_scale is not None or detector.network.second_head is not None:
        raise ValueError(
            "OpenOOD's ResNet-18 has one head, on features as they come, but the detector was trained with"
            " --feature-scale or --method mcd: give another one"
        )
    shortcut = "downsample" if hasattr(body, "maxpool") else "shortcut"
    return {
        name: name.replace("head.", "fc.").removeprefix("body.").replace("downsample", shortcut)
        for name in detector.network.state_dict()
    }


def _lists(
    name: str,
    images: str,
    download: str,
    *,
    near_ood: Iterable[str],
    far_ood: Iterable[str],
    covariate: Mapping[str, str],
    validation_ood: str,
    outliers: str | None = None,
) -> Benchmark:
    """A benchmark from the names of its OOD sets, which their lists have too, and the lists of the other sets."""

    def listed(stem: str) -> ListedImages:
        return ListedImages(f"{LISTS}/{name}/{stem}.txt", CLASSIC if stem == "test_textures" else images)

    parts = {"train": f"train_{name}", "validation": f"val_{name}", "test": f"test_{name}"}
    parts["validation_ood"] = validation_ood
    groups = {
        "near_ood": {kind: f"test_{kind}" for kind in near_ood},
        "far_ood": {kind: f"test_{kind}" for kind in far_ood},
        "covariate": covariate,
    }
    return Benchmark(
        {part: listed(stem) for part, stem in (parts | ({"outliers": outliers} if outliers else {})).items()},
        {group: {kind: listed(stem) for kind, stem in kinds.items()} for group, kinds in groups.items()},
        RESIZE[images],
        download,
    )


_FAR_FROM_CIFAR = ("mnist", "svhn", "texture", "places365")
_NEAR_IMAGENET, _FAR_FROM_IMAGENET = ("ssb_hard", "ninco"), ("inaturalist", "textures", "openimage_o")

BENCHMARKS: Mapping[str, Benchmark] = {
    "cifar10": _lists(
        "cifar10",
        CLASSIC,
        "cifar-10",
        near_ood=("cifar100", "tin"),
        far_ood=_FAR_FROM_CIFAR,
        covariate={"cifar10c": "test_cifar10c"},
        validation_ood="val_tin",
        outliers="train_tin597",
    ),
    "cifar100": _lists(
        "cifar100",
        CLASSIC,
        "cifar-100",
        near_ood=("cifar10", "tin"),
        far_ood=_FAR_FROM_CIFAR,
        covariate={},
        validation_ood="val_tin",
        outliers="train_tin597",
    ),
    "imagenet200": _lists(
        "imagenet200",
        LARGE,
        "imagenet-200",
        near_ood=_NEAR_IMAGENET,
        far_ood=_FAR_FROM_IMAGENET,
        covariate={f"imagenet_{kind}": f"test_imagenet200_{kind}" for kind in ("v2", "c", "r")},
        validation_ood="val_openimage_o",
        outliers="train_imagenet800",
    ),
    "imagenet": _lists(
        "imagenet",
        LARGE,
        "imagenet-1k",
        near_ood=_NEAR_IMAGENET,
        far_ood=_FAR_FROM_IMAGENET,
        covariate={f"imagenet_{kind}": f"test_imagenet_{kind}" for kind in ("v2", "c", "r", "es")},
        validation_ood="val_openimage_o",
    ),
}
"""The benchmarks of OpenOOD by name."""
