"""Labelled and unlabelled images from anywhere: what kind of source it is, and its images."""

from __future__ import annotations

from pathlib import Path

from sona_pipeline.data.folders import open_folder
from sona_pipeline.data.image_set import ImageSet
from sona_pipeline.data.imaging import image_suffixes
from sona_pipeline.data.lists import is_image_list, list_classes, open_list
from sona_pipeline.data.settings import ImageSource
from sona_pipeline.data.tables import hub_table, open_table, parquet_table, saved_table


def open_images(
    source: str | Path,
    *,
    split: str = "train",
    image_column: str | None = None,
    label_column: str | None = None,
    image_root: str | Path | None = None,
    class_list: str | Path | None = None,
) -> ImageSet:
    """Open labelled or unlabelled images as an `ImageSet`.

    Args:
        source: one of
            - an image folder, whose sub-folders are the classes, sorted by name, empty ones too; images that lie in the
              folder itself are unlabelled, and a folder may hold one kind only. Hidden files and folders are passed
              over;
            - a parquet file or a folder of them, a folder written by `datasets.save_to_disk`, or the id of a data set
              on the Hub ("owner/name");
            - an image list of OpenOOD, a text file with `path label` on each line. Classes are named after the
              folders of their images where those tell them apart, else by their numbers; -1 is no class.
        split: part of a Hub data set, or of one that `save_to_disk` wrote with several.
        image_column: column of the images; by default the one that holds images.
        label_column: column of the classes; by default the only one with class names, else `label`.
        image_root: folder that the paths of an image list start from; by default the folder of the list.
        class_list: another image list, that of the training images, whose classes an image list has by their numbers;
            ImageNet's validation images lie in one folder, which names no class. For other sources it means nothing.

    Raises:
        FileNotFoundError: `source` is not there.
        ValueError: nothing that can be read as an image lies there, labelled and unlabelled images are mixed, or a
            column is missing or cannot be told.
    """
    path = Path(source)
    shards = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not path.exists():
        table = hub_table(str(source), split)
    elif (path / "state.json").exists() or (path / "dataset_dict.json").exists():
        table = saved_table(path, split)
    elif shards and shards[0].suffix == ".parquet":
        table = parquet_table(shards)
    elif path.suffix.lower() in image_suffixes():
        raise ValueError(f"{path} is a single image: give the folder that it lies in")
    else:
        names = list_classes(class_list) if class_list and is_image_list(path) else None
        return open_folder(path) if path.is_dir() else open_list(path, image_root or path.parent, names)
    return open_table(table, str(source), image_column, label_column)


def open_source(source: ImageSource, class_list: str | None = None) -> ImageSet:
    """Open the images that settings name; `class_list` and what is raised are those of `open_images`."""
    return open_images(
        source.data,
        split=source.split,
        image_column=source.image_column,
        label_column=source.label_column,
        image_root=source.image_root,
        class_list=class_list,
    )
