"""Settings of data: where images come from, and the forms that images and outlier sets have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sona_pipeline.common.registry import Registry

if TYPE_CHECKING:
    from sona_pipeline.data.codecs import Codec
    from sona_pipeline.data.shards import Packing

RESIZE_MODES = ("crop", "pad", "squash")
"""How an image comes to a square, see `imaging.fit`."""
PACKINGS: Registry[Packing] = Registry(
    {
        "parquet": "sona_pipeline.data.shards:PARQUET",
        "webdataset": "sona_pipeline.data.shards:WEBDATASET",
    }
)
"""Forms of shards."""
FORMATS = ("folder", *PACKINGS)
"""Forms of an outlier set: image folders, or shards."""

CODECS: Registry[Codec] = Registry(
    {name: f"sona_pipeline.data.codecs:{name.upper()}" for name in ("png", "webp", "jpeg")}
)
"""What pictures of an outlier set are written with."""


@dataclass(frozen=True)
class ImageSource:
    """Where labelled images come from, see `open_images`."""

    data: str
    """Labelled images: a folder with a sub-folder a class, parquet files, WebDataset tars, a Hub data set (owner/name),
    an address of any of these (s3://..., gs://..., hf://datasets/owner/name), or an image list of OpenOOD."""
    split: str = "train"
    """Split of data with several: on the Hub, of shards, or of folders."""
    image_column: str | None = None
    """Column of the images, if it cannot be told."""
    label_column: str | None = None
    """Column of the classes, if it cannot be told."""
    image_root: Path | None = None
    """Folder that the paths of an image list start from."""
