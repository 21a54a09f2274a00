"""Tables of images: parquet files, what `datasets` saved, and data sets on the Hub."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from sona_pipeline.common.messages import brief
from sona_pipeline.data.class_names import check_spellings
from sona_pipeline.data.columns import check_image_column, check_label_column, check_rows, features_of, picture
from sona_pipeline.data.image_set import ImageSet
from sona_pipeline.data.imaging import decoded

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict, Features


class Columns:
    """The columns of a table that images and classes are in.

    Args:
        features: of the table.
        name: what an error calls the table.
        image: column of the images; by default the only one that `datasets` knows to hold images, else `image`.
        label: column of the classes; by default the only one with class names, else `label`.
        labelled: whether classes are needed; if not, named columns that are not there are passed over, and the images
            are unlabelled where the classes cannot be told; if None, named columns have to be there.

    Raises:
        ValueError: a column is missing, cannot be told, or is of a type that is not taken.
    """

    def __init__(self, features: Features, name: str, image: str | None, label: str | None, labelled: bool | None):
        import datasets

        self._kinds, self._name = {column: type(feature) for column, feature in features.items()}, name
        if labelled is False:
            image, label = (column if column in self._kinds else None for column in (image, label))
        self.image = image or self._only(datasets.Image) or "image"
        self._check_there(self.image, "images")
        check_image_column(features, self.image, name)
        try:
            self.label = self._label(features, label, labelled)
        except ValueError:
            if labelled is not False:
                raise
            self.label = None

    def _label(self, features: Features, label: str | None, labelled: bool | None) -> str | None:
        import datasets

        several = [column for column, kind in self._kinds.items() if kind is datasets.ClassLabel]
        found = label or self._only(datasets.ClassLabel) or "label"
        if label:
            self._check_there(label, "classes")
        elif found not in self._kinds and len(several) > 1:
            raise ValueError(f"{self._name} has several columns with classes, {several}: name one as the label column")
        elif found not in self._kinds and labelled:
            raise ValueError(
                f"{self._name} has no column 'label' for the classes: name the one that holds them (--label-column)"
                f" of its columns {list(self._kinds)}"
            )
        elif found not in self._kinds:
            return None
        check_label_column(features, found, self._name)
        return found

    def _check_there(self, column: str, what: str) -> None:
        if column not in self._kinds:
            raise ValueError(
                f"{self._name} has no column {column!r} for the {what}; its columns are {list(self._kinds)}"
            )

    def _only(self, kind: type) -> str | None:
        found = [column for column, other in self._kinds.items() if other is kind]
        return found[0] if len(found) == 1 else None


def parquet_table(shards: list[Path], features: Features | None = None) -> Dataset:
    """The rows of parquet files, one after the other; ValueError if they cannot be read together.

    Args:
        shards: the files.
        features: of all of them, if they do not say so themselves.
    """
    import datasets

    try:
        return datasets.Dataset.from_parquet([str(shard) for shard in shards], features=features)
    except (datasets.exceptions.DatasetGenerationError, TypeError, ValueError) as error:
        others = f" and {len(shards) - 1} more" if len(shards) > 1 else ""
        raise ValueError(f"{shards[0]}{others} cannot be read as a table: {brief(error.__cause__ or error)}") from error


def saved_table(path: Path, split: str) -> Dataset:
    """What `datasets` saved in a folder: all of it, or its split."""
    import datasets

    return _part(datasets.load_from_disk(str(path)), str(path), split)


def hub_table(name: str, split: str) -> Dataset:
    """A split of a data set on the Hub; FileNotFoundError if there is none, ValueError if it is damaged or a script."""
    import datasets
    import pyarrow as pa

    if not re.fullmatch(r"[^\W_][\w.-]*/[^\W_][\w.-]*", name):
        raise FileNotFoundError(f"{name} does not exist: give an image folder, parquet files, a list or a Hub id")
    try:
        return datasets.load_dataset(name, split=split)
    except (OSError, ConnectionError, datasets.exceptions.DatasetNotFoundError) as error:
        raise FileNotFoundError(f"{name} exists neither here nor as a data set on the Hub: {error}") from error
    except (datasets.exceptions.DatasetGenerationError, pa.ArrowException, RuntimeError) as error:
        raise ValueError(f"{name} cannot be read as a table: {brief(error.__cause__ or error)}") from error


def _part(table: Dataset | DatasetDict, name: str, split: str) -> Dataset:
    if not isinstance(table, dict):
        return table
    if split not in table:
        raise ValueError(f"{name} has no split {split!r}; its splits are {list(table)}")
    return table[split]


def open_parquet(
    shards: list[Path],
    features: Features | None,
    name: str,
    image_column: str | None,
    label_column: str | None,
    labelled: bool | None,
) -> ImageSet:
    """Open the images of parquet files, whose columns are checked before their rows are read."""
    Columns(features or features_of(shards[0]), name, image_column, label_column, labelled)
    return open_table(parquet_table(shards, features), name, image_column, label_column, labelled)


def open_table(
    table: Dataset, name: str, image_column: str | None, label_column: str | None, labelled: bool | None = None
) -> ImageSet:
    """Open the images of a table called `name`; what is raised is told by `open_images`."""
    import datasets

    columns = Columns(table.features, name, image_column, label_column, labelled)
    if not len(table):
        raise ValueError(f"{name} holds no images")
    pictures, feature = table.select_columns([columns.image]), table.features[columns.image]
    if isinstance(feature, datasets.Image):
        pictures = pictures.cast_column(columns.image, datasets.Image(decode=False))
    check_rows(pictures, columns.image, name)
    labels, classes = labels_of(table, columns.label, name, labelled)
    return ImageSet(
        keys=keys_of(table, len(table), labels, classes),
        labels=tuple(labels),
        classes=tuple(classes),
        _open=lambda i: decoded(lambda: picture(pictures[i][columns.image], feature), f"row {i} of {name}"),
    )


def keys_of(table: Dataset, count: int, labels: list[int], classes: list[str]) -> tuple[str, ...]:
    """The keys of `count` rows: those in the column `key`, or numbers with a mark that tells tables apart.

    So the outliers of one table are not taken for those of another.
    """
    if "key" in table.features:
        return tuple(map(str, table["key"][:]))
    mark = hashlib.sha256(json.dumps([count, labels, classes]).encode()).hexdigest()[:8]
    return tuple(f"{mark}/{i:08d}" for i in range(count))


def labels_of(table: Dataset, column: str | None, name: str, labelled: bool | None) -> tuple[list[int], list[str]]:
    """Class index of each row and class names; none if there is no column, or if it cannot be read and need not be."""
    if column is None:
        return [], []
    try:
        labels, classes = _labels(table, column)
        check_spellings(classes, f"column {column!r} of {name}")
    except ValueError:
        if labelled is not False:
            raise
        return [], []
    return labels, classes


def _labels(table: Dataset, column: str) -> tuple[list[int], list[str]]:
    """Class indices and class names of a column of class labels, or of one of names or whole numbers."""
    values, feature = table[column][:], table.features[column]
    if any(value is None or value == -1 or value != value for value in values):
        raise ValueError(f"column {column!r} has rows without a class: leave them out, or use another split")
    if hasattr(feature, "names"):
        if max(values) >= len(feature.names) or min(values) < 0:
            wrong = next(value for value in values if not 0 <= value < len(feature.names))
            raise ValueError(
                f"column {column!r} has the label {wrong}, but names for {len(feature.names)} classes only"
            )
        return values, feature.names
    if broken := [value for value in values if isinstance(value, float) and not value.is_integer()]:
        raise ValueError(f"column {column!r} has the label {broken[0]}: labels have to be whole numbers or names")
    values = [int(value) if isinstance(value, float) else value for value in values]
    return numbered(values)


def numbered(values: list) -> tuple[list[int], list[str]]:
    """The place of each value among all that there are, sorted, and what these are called."""
    order = sorted(set(values))
    number = {value: i for i, value in enumerate(order)}
    return [number[value] for value in values], [str(value) for value in order]
