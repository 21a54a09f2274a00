"""Tables of images: parquet files, what `datasets` saved, and data sets on the Hub."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from sona_pipeline.data.image_set import ImageSet
from sona_pipeline.data.imaging import decoded

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict


def parquet_table(shards: list[Path]) -> Dataset:
    """The rows of parquet files, one after the other."""
    import datasets

    return datasets.Dataset.from_parquet([str(shard) for shard in shards])


def saved_table(path: Path, split: str) -> Dataset:
    """What `datasets` saved in a folder: all of it, or its split."""
    import datasets

    return _part(datasets.load_from_disk(str(path)), str(path), split)


def hub_table(name: str, split: str) -> Dataset:
    """A split of a data set on the Hub; FileNotFoundError if there is none."""
    import datasets

    if not re.fullmatch(r"[^\W_][\w.-]*/[^\W_][\w.-]*", name):
        raise FileNotFoundError(f"{name} does not exist: give an image folder, parquet files, a list or a Hub id")
    try:
        return datasets.load_dataset(name, split=split)
    except (OSError, ConnectionError, datasets.exceptions.DatasetNotFoundError) as error:
        raise FileNotFoundError(f"{name} exists neither here nor as a data set on the Hub: {error}") from error


def _part(table: Dataset | DatasetDict, name: str, split: str) -> Dataset:
    if not isinstance(table, dict):
        return table
    if split not in table:
        raise ValueError(f"{name} has no split {split!r}; its splits are {list(table)}")
    return table[split]


def open_table(table: Dataset, name: str, image_column: str | None, label_column: str | None) -> ImageSet:
    """Open the images of a table called `name`; what is raised is told by `open_images`."""
    import datasets

    kinds = {column: type(feature) for column, feature in table.features.items()}
    if label_column and label_column not in kinds:
        raise ValueError(f"{name} has no column {label_column!r} for the classes; its columns are {list(kinds)}")
    image_column = image_column or _only(kinds, datasets.Image) or "image"
    label_column = label_column or _only(kinds, datasets.ClassLabel) or "label"
    if image_column not in kinds:
        raise ValueError(f"{name} has no column {image_column!r} for the images; its columns are {list(kinds)}")
    several = [column for column, kind in kinds.items() if kind is datasets.ClassLabel]
    if label_column not in kinds and len(several) > 1:
        raise ValueError(f"{name} has several columns with classes, {several}: name one as the label column")
    if not len(table):
        raise ValueError(f"{name} holds no images")
    pictures = table.select_columns([image_column]).cast_column(image_column, datasets.Image())
    labels, classes = _labels(table, label_column) if label_column in kinds else ([], [])
    if "key" in kinds:
        keys: Iterable[str] = map(str, table["key"][:])
    else:  # tells tables apart, so that the outliers of one are not taken for those of another
        mark = hashlib.sha256(json.dumps([len(table), labels, classes]).encode()).hexdigest()[:8]
        keys = (f"{mark}/{i:08d}" for i in range(len(table)))
    return ImageSet(
        keys=tuple(keys),
        labels=tuple(labels),
        classes=tuple(classes),
        _open=lambda i: decoded(lambda: pictures[i][image_column], f"row {i} of {name}"),
    )


def _only(kinds: dict[str, type], kind: type) -> str | None:
    found = [column for column, other in kinds.items() if other is kind]
    return found[0] if len(found) == 1 else None


def _labels(table: Dataset, column: str) -> tuple[list[int], list[str]]:
    """Class indices and class names of a column of class labels, or of one of names."""
    values, feature = table[column][:], table.features[column]
    if None in values or -1 in values:
        raise ValueError(f"column {column!r} has rows without a class: leave them out, or use another split")
    if hasattr(feature, "names"):
        return values, feature.names
    order = sorted(set(values))
    number = {value: i for i, value in enumerate(order)}
    return [number[value] for value in values], [str(value) for value in order]
