"""Labelled and unlabelled images from anywhere: what kind of source it is, and its images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from sona_pipeline.common.names import expanded
from sona_pipeline.data.folders import has_images, inner_folder, open_folder
from sona_pipeline.data.image_set import ImageSet
from sona_pipeline.data.imaging import image_suffixes
from sona_pipeline.data.lists import check_listed_once, is_image_list, list_classes, open_list
from sona_pipeline.data.outlier_set import check_no_outlier_set
from sona_pipeline.data.remote import address_of, storage_of
from sona_pipeline.data.remote_images import of_split, open_remote
from sona_pipeline.data.settings import ImageSource
from sona_pipeline.data.table_files import PARQUET, is_configured, parquet_files
from sona_pipeline.data.tables import hub_table, open_parquet, open_table, saved_table
from sona_pipeline.data.tars import TAR, open_tars
from sona_pipeline.data.walk import Walk, check_no_archive

if TYPE_CHECKING:
    from datasets import Features


def open_images(
    source: str | Path,
    *,
    split: str = "train",
    image_column: str | None = None,
    label_column: str | None = None,
    image_root: str | Path | None = None,
    class_list: str | Path | None = None,
    labelled: bool | None = None,
) -> ImageSet:
    """Open labelled or unlabelled images as an `ImageSet`.

    Args:
        source: one of
            - an image folder, whose sub-folders are the classes, sorted by name, empty ones too; images that lie in the
              folder itself are unlabelled, and a folder may hold one kind only. The folder may lie in another as all
              that this one holds, or its classes in sub-folders that are splits (train, val, test). Hidden files, and
              what systems strew about, are passed over without a word; other files, tables too, with a warning;
            - a parquet file or a folder of them, such as a cloned data set of the Hub, a folder written by
              `datasets.save_to_disk`, or the id of a data set on the Hub ("owner/name");
            - WebDataset tars: one, or a folder of them, see `open_tars`;
            - an address that fsspec knows (s3://, gs://, hf://datasets/owner/name, memory://) of an image folder, or of
              parquet files or tars, also with `*` in it; nothing of that is downloaded whole, see `open_remote`;
            - an image list of OpenOOD, a text file with `path label` on each line. Classes are named after the
              folders of their images where those tell them apart, else by their numbers; -1 is no class.
        split: part of a Hub data set, of one that `save_to_disk` wrote with several, or of a folder with several.
        image_column: column of the images; by default the one that holds images.
        label_column: column of the classes; by default the only one with class names, else `label`. Without names they
            are named after their numbers.
        image_root: folder that the paths of an image list start from; by default the folder of the list.
        class_list: another image list, that of the training images, whose classes an image list has by their numbers;
            ImageNet's validation images lie in one folder, which names no class. For other sources it means nothing.
        labelled: of a table, whether it has to have a column of classes; if False, the images may stay unlabelled
            where the classes cannot be told, and named columns that are not there are passed over.

    Raises:
        FileNotFoundError: `source` is not there.
        PermissionError: a folder may not be listed.
        ValueError: nothing that can be read as an image lies there, labelled and unlabelled images or images and tables
            of images are mixed, there is no such split, or a column is missing or cannot be told.
    """
    if address := address_of(source):
        return open_remote(address, split, image_column, label_column, labelled)
    path = expanded(source)
    if not path.exists():
        return open_table(hub_table(str(source), split), str(source), image_column, label_column, labelled)
    if path.is_file() and path.suffix.lower() == TAR:
        return open_tars(storage_of(path.parent), [path.name], str(path), label_column, labelled)
    if path.is_file():
        _refuse_other_files(path)
    if is_image_list(path):
        return _open_list(path, image_root, class_list)
    if _is_saved(path):
        return open_table(saved_table(path, split), str(path), image_column, label_column, labelled)
    shards, features = _shards(path, split) if path.is_dir() else ([path], None)
    if not shards:
        check_no_outlier_set(path)
        if tars := _tars(path):
            return open_tars(storage_of(path), of_split(tars, split, str(path)), str(path), label_column, labelled)
        return open_folder(inner_folder(path, split))
    return open_parquet(shards, features, str(path), image_column, label_column, labelled)


def _tars(path: Path) -> list[str]:
    """The tars in a folder without image files."""
    return [] if has_images(path) else sorted(Walk(path, {TAR}))


def _open_list(path: Path, root: str | Path | None, class_list: str | Path | None) -> ImageSet:
    if root and not expanded(root).is_dir():
        raise FileNotFoundError(f"the image root {root} is no folder: give the one that the paths in {path} start from")
    images = open_list(path, root or path.parent, list_classes(class_list) if class_list else None)
    check_listed_once(path, images.keys)
    return images


def _refuse_other_files(path: Path) -> None:
    if path.suffix.lower() in image_suffixes():
        raise ValueError(f"{path} is a single image: give the folder that it lies in")
    check_no_archive(path)


def _is_saved(path: Path) -> bool:
    """Whether a folder was written by `datasets.save_to_disk`."""
    return any(os.path.exists(path / name) for name in ("state.json", "dataset_dict.json"))


def _shards(path: Path, split: str) -> tuple[list[Path], Features | None]:
    """What `parquet_files` finds; none in a folder of image files, where tables are about these.

    Raises:
        ValueError: images lie in files and in parquet files.
    """
    if not has_images(path) or is_configured(path):
        return parquet_files(path, split)
    for shard in Walk(path, {PARQUET}):
        if _holds_images(path / shard):
            raise ValueError(
                f"{path} holds image files, and images in parquet files such as {shard}: give the one or the other, in"
                " a folder of its own"
            )
    return [], None


def _holds_images(shard: Path) -> bool:
    """Whether a parquet file has a column that may hold images and not only their names."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        schema = parquet.read_schema(shard)
    except (OSError, pa.ArrowException):
        return False
    return any(pa.types.is_struct(kind) or pa.types.is_binary(kind) for kind in schema.types)


def open_source(source: ImageSource, class_list: str | None = None, labelled: bool = True) -> ImageSet:
    """Open the images that settings name; `class_list`, `labelled` and what is raised are those of `open_images`."""
    return open_images(
        source.data,
        split=source.split,
        image_column=source.image_column,
        label_column=source.label_column,
        image_root=source.image_root,
        class_list=class_list,
        labelled=labelled,
    )
