"""WebDataset tars, on this machine or at an address: read where they lie, an image at a time."""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from PIL import Image

from sona_pipeline.common.messages import brief
from sona_pipeline.data.class_names import check_spellings
from sona_pipeline.data.image_set import ImageSet
from sona_pipeline.data.imaging import decoded, image_suffixes
from sona_pipeline.data.remote import Storage, reached
from sona_pipeline.data.tables import numbered

TAR = ".tar"
AT_ONCE = 8
"""Tars that are looked through at a time."""
BLOCK = 1 << 16
"""Bytes that headers are read by: the files beside an image are mostly read along with it."""
LARGEST_LABEL = 1 << 20
_NUMBER = re.compile(r"-?\d+")


@dataclass
class TarImage:
    """Where an image lies in a tar, and what the files beside it say of it.

    Attributes:
        key: name of the sample.
        tar: number of the tar.
        start, end: bytes of the image in it.
        labels: what the files `cls` and `json` beside it hold.
    """

    key: str
    tar: int
    start: int = 0
    end: int = 0
    labels: dict[str, Any] = field(default_factory=dict)


def open_tars(
    storage: Storage, tars: Sequence[str], name: str, label_column: str | None = None, labelled: bool | None = None
) -> ImageSet:
    """Open the images of WebDataset tars: files of one name up to its first dot are a sample.

    The class of an image is what the file `cls` beside it says, or `label` (or `label_column`) in its `json`, else the
    folder that it lies in. Of the tars only headers and labels are read, until an image is asked for.

    Args:
        storage: where they lie.
        tars: their names there.
        name: what an error calls them together.
        label_column: of the `json` files; "cls" for that file.
        labelled: whether every image has to have a class.

    Raises:
        ValueError: a tar is damaged or cut short, there are no images, or only some have a class.
        OSError: see `reached`.
    """
    with ThreadPoolExecutor(AT_ONCE) as pool:
        looked_through = pool.map(lambda number: _samples(storage, tars[number], number), range(len(tars)))
        found = [image for samples in looked_through for image in samples]
    if not found:
        raise ValueError(f"no images in the tars of {name}: expected files such as 000001.jpg beside 000001.cls")
    count = Counter(image.key for image in found)
    stems = [PurePosixPath(tar).stem for tar in tars]
    keys = [image.key if count[image.key] == 1 else f"{stems[image.tar]}/{image.key}" for image in found]
    labels, classes = _classes(found, name, label_column, labelled)

    def open_image(index: int) -> Image.Image:
        image = found[index]
        shown = f"{image.key} in {storage.address}/{tars[image.tar]}"
        return decoded(lambda: Image.open(io.BytesIO(storage.read(tars[image.tar], image.start, image.end))), shown)

    return ImageSet(tuple(keys), tuple(labels), tuple(classes), open_image)


def _samples(storage: Storage, tar: str, number: int) -> list[TarImage]:
    """The images of a tar, in its order."""
    place, found = f"{storage.address}/{tar}".rstrip("/"), dict[str, TarImage]()
    with reached(place):
        file = storage.files.open(storage.place(tar), "rb", block_size=BLOCK, cache_type="readahead")
    with file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as opened:
                for member in opened:
                    if member.isfile():
                        _note(found, opened, member, number)
        except (tarfile.TarError, EOFError, ValueError) as error:
            raise ValueError(f"{place} is no tar, or one that is damaged or cut short: {brief(error)}") from error
        except Exception:
            with reached(place):
                raise
    return [image for image in found.values() if image.end]


def _note(found: dict[str, TarImage], tar: tarfile.TarFile, member: tarfile.TarInfo, number: int) -> None:
    """Take down what a file of a tar says of its sample."""
    folder, _, file = member.name.removeprefix("./").rpartition("/")
    stem, _, kind = file.partition(".")
    if not stem:  # hidden
        return
    key, kind = f"{folder}/{stem}" if folder else stem, kind.lower()
    image = found.setdefault(key, TarImage(key, number))
    if f".{kind}" in image_suffixes():
        image.start, image.end = member.offset_data, member.offset_data + member.size
    elif kind in ("cls", "json") and member.size <= LARGEST_LABEL:
        content = tar.extractfile(member)
        text = content.read().decode() if content else ""
        values = json.loads(text) if kind == "json" else {"cls": text.strip()}
        image.labels |= values if isinstance(values, dict) else {}


def _classes(
    found: Sequence[TarImage], name: str, column: str | None, labelled: bool | None
) -> tuple[list[int], list[str]]:
    """Class index of each image, and the class names; none if the images have no classes."""
    columns = [column] if column else ["cls", "label"]
    values = [next((image.labels[c] for c in columns if c in image.labels), None) for image in found]
    if not column and all(value is None for value in values):
        values = [image.key.rpartition("/")[0].rpartition("/")[2] or None for image in found]
    if without := [image.key for image, value in zip(found, values) if value is None]:
        if len(without) == len(found) and not column and not labelled:
            return [], []
        if labelled is False:
            return [], []
        raise ValueError(
            f"{len(without)} of {len(found)} images in the tars of {name} have no class, such as {without[0]}: put"
            f" {column or 'cls'} beside each, or name what holds it (--label-column)"
        )
    words = [str(value) for value in values]
    labels, classes = numbered([int(word) for word in words] if all(map(_NUMBER.fullmatch, words)) else words)
    check_spellings(classes, name)
    return labels, classes
