"""Images at an address: image folders, parquet files and WebDataset tars, none of which is downloaded whole."""

from __future__ import annotations

import io
import os
import tempfile
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from sona_pipeline.common.messages import brief
from sona_pipeline.data.columns import picture
from sona_pipeline.data.folders import labels_by_folder, split_of
from sona_pipeline.data.image_set import ImageSet
from sona_pipeline.data.imaging import decoded, image_suffixes
from sona_pipeline.data.remote import Storage, reached, under
from sona_pipeline.data.strewn import is_strewn
from sona_pipeline.data.table_files import PARQUET
from sona_pipeline.data.tables import Columns, keys_of, labels_of
from sona_pipeline.data.tars import TAR, open_tars

if TYPE_CHECKING:
    import pyarrow
    from pyarrow.parquet import ParquetFile


def open_remote(
    address: str, split: str, image_column: str | None, label_column: str | None, labelled: bool | None
) -> ImageSet:
    """Open the images at an address; arguments and errors are those of `open_images`, and those of `reached`."""
    storage, name = under(address)
    files = {file: size for file, size in storage.listing().items() if not any(map(is_strewn, file.split("/")))}
    if list(files) == [""]:
        folder, _, file = address.rpartition("/")
        storage, files = Storage(folder), {file: files[""]}
    kinds: dict[str, list[str]] = {}
    for file in files:
        suffix = os.path.splitext(file)[1].lower()
        kinds.setdefault("images" if suffix in image_suffixes() else suffix, []).append(file)
    found = [kind for kind in ("images", PARQUET, TAR) if kind in kinds]
    if not found:
        shown = f" ({', '.join(sorted(kinds))})" if kinds else ""
        raise ValueError(f"no images under {name}{shown}: expected image files, parquet files or tars")
    if len(found) > 1:
        examples = " and ".join(kinds[kind][0] for kind in found)
        raise ValueError(f"{name} holds images in several forms, {examples}: give the address of one")
    chosen = of_split(kinds[found[0]], split, name, is_nested=found[0] == "images")
    if found[0] == "images":
        return _open_folder(storage, chosen, name)
    if found[0] == TAR:
        return open_tars(storage, chosen, name, label_column, labelled)
    return _open_parquet(storage, chosen, name, image_column, label_column, labelled)


def of_split(files: list[str], split: str, name: str, is_nested: bool = False) -> list[str]:
    """The files of a split; all if their names, or those of the folders around class folders, tell none."""
    if is_nested and not all(file.count("/") > 1 for file in files):
        return files
    heads = {file: file.split("/")[0] if is_nested else file for file in files}
    splits = {file: next(filter(None, map(split_of, _words(head))), None) for file, head in heads.items()}
    if not all(splits.values()):
        return files
    kept = [file for file in files if splits[file] == split_of(split)]
    if not kept:
        known = sorted({word for word in splits.values() if word})
        raise ValueError(f"{name} has no split {split!r}; its splits are {known}: name one of these")
    return kept


def _words(place: str) -> list[str]:
    """Folders and file name of a path, without its suffix."""
    *folders, file = place.split("/")
    return [*folders, os.path.splitext(file)[0]]


def _open_folder(storage: Storage, files: list[str], name: str) -> ImageSet:
    heads = {file.partition("/")[0] for file in files}
    if len(heads) == 1 and all(file.count("/") > 1 for file in files):  # a split, or what classes are wrapped in
        storage = storage.inside(heads.pop())
        files = [file.partition("/")[2] for file in files]
    labels, classes = labels_by_folder(files, name)

    def open_image(index: int) -> Image.Image:
        file = files[index]
        return decoded(lambda: Image.open(io.BytesIO(storage.read(file))), f"{storage.address}/{file}")

    return ImageSet(tuple(files), labels, classes, open_image)


class RowGroups:
    """One column of parquet files at an address, read by row groups, each once and when it is asked for.

    What was read lies in a temporary folder, which goes away with this.
    """

    def __init__(self, storage: Storage, counts: Mapping[str, Sequence[int]], column: str):
        self.storage, self.column = storage, column
        self.groups = [(file, group) for file, some in counts.items() for group in range(len(some))]
        self.ends = list(accumulate(count for some in counts.values() for count in some))
        self.kept = tempfile.TemporaryDirectory(prefix="sona-rows-")

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, row: int) -> Any:
        import pyarrow as pa

        group = bisect_right(self.ends, row)
        path = Path(self.kept.name) / f"{group}.arrow"
        if not path.exists():
            self._keep(group, path)
        with pa.memory_map(str(path)) as file:
            column = pa.ipc.open_file(file).read_all().column(0)
            return column[row - (self.ends[group - 1] if group else 0)].as_py()

    def _keep(self, group: int, path: Path) -> None:
        import pyarrow as pa

        file, number = self.groups[group]
        with open_parquet_file(self.storage, file) as opened, _whole(f"{self.storage.address}/{file}"):
            table = opened.read_row_group(number, columns=[self.column])
        descriptor, partial = tempfile.mkstemp(dir=self.kept.name)  # other threads may read the same group
        with os.fdopen(descriptor, "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        os.replace(partial, path)


def open_parquet_file(storage: Storage, file: str) -> ParquetFile:
    """A parquet file at an address; errors are those of `reached`, and ValueError if it is none, or a damaged one."""
    from pyarrow import parquet

    place = f"{storage.address}/{file}"
    with reached(place):
        opened = storage.files.open(storage.place(file), "rb", block_size=1 << 20, cache_type="readahead")
    with _whole(place):
        return parquet.ParquetFile(opened, pre_buffer=False)


@contextmanager
def _whole(place: str) -> Iterator[None]:
    """Tell a parquet file that is damaged, which is a ValueError, from one that is not `reached`."""
    import pyarrow as pa

    try:
        yield
    except Exception as error:
        if isinstance(error, pa.ArrowException) or (type(error) is OSError and error.errno is None):
            raise ValueError(
                f"{place} is no parquet file, or one that is damaged or cut short: {brief(error)}"
            ) from error
        with reached(place):
            raise


def _open_parquet(
    storage: Storage,
    files: list[str],
    name: str,
    image_column: str | None,
    label_column: str | None,
    labelled: bool | None,
) -> ImageSet:
    import datasets
    import pyarrow as pa

    with open_parquet_file(storage, files[0]) as first:
        features = datasets.Features.from_arrow_schema(first.schema_arrow)
    columns = Columns(features, name, image_column, label_column, labelled)
    small = [column for column in dict.fromkeys([columns.label, "key"]) if column in features]
    counts: dict[str, list[int]] = {}
    tables: list[pyarrow.Table] = []
    for file in files:
        with open_parquet_file(storage, file) as opened, _whole(f"{storage.address}/{file}"):
            counts[file] = [opened.metadata.row_group(g).num_rows for g in range(opened.num_row_groups)]
            tables.append(opened.read(columns=small))
    rows = RowGroups(storage, counts, columns.image)
    if not len(rows):
        raise ValueError(f"{name} holds no images")
    table = datasets.Dataset(datasets.table.InMemoryTable(pa.concat_tables(tables)))
    labels, classes = labels_of(table, columns.label, name, labelled)
    feature = features[columns.image]
    return ImageSet(
        keys=keys_of(table, len(rows), labels, classes),
        labels=tuple(labels),
        classes=tuple(classes),
        _open=lambda i: decoded(lambda: picture(rows[i], feature), f"row {i} of {name}"),
    )
