"""Outliers packed into few large files: parquet and WebDataset, in parts that are merged into shards."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Protocol

import datasets
import pyarrow
import pyarrow.parquet as pq

ROW_GROUP = 100
"""Rows that a published parquet file is read by; small, so that a viewer has the first ones at once."""


@dataclass(frozen=True)
class Sample:
    """One outlier: its row of the metadata table, its image file, and that of its source's VAE round trip, or None.

    The suffix of the row's `file_name` says what both files are.
    """

    row: dict
    outlier: bytes
    reconstruction: bytes | None


class Packing(Protocol):
    """A kind of shard: how samples become a part, and parts a shard."""

    suffix: str

    def columns(self, suffix: str) -> tuple[str, str]:
        """What `datasets` calls the outlier and the reconstruction, if they are image files with this suffix."""

    def pack(self, path: Path, samples: Sequence[Sample]) -> None:
        """Write samples to a file."""

    def merge(self, path: Path, parts: Sequence[Path], is_kept: Callable[[str], bool]) -> None:
        """Write samples of several files to one, a file at a time.

        Args:
            path: of the one file.
            parts: files that `pack` wrote.
            is_kept: whether the sample of a `file_name` is written.
        """

    def unpack(self, path: Path) -> Iterator[Sample]:
        """The samples in a part or shard, a few at a time."""


class Parquet:
    """Rows of the metadata table with the columns `image` and, if there are any, `reconstruction`."""

    suffix = "parquet"

    def columns(self, suffix: str) -> tuple[str, str]:
        """The same for all image files."""
        return "image", "reconstruction"

    def pack(self, path: Path, samples: Sequence[Sample]) -> None:
        """Write samples to a parquet file, as `datasets` does."""
        pq.write_table(_table(samples), path)

    def merge(self, path: Path, parts: Sequence[Path], is_kept: Callable[[str], bool]) -> None:
        """Write rows of several parquet files to one."""
        with pq.ParquetWriter(path, pq.read_schema(parts[0])) as writer:
            for part in parts:
                table = pq.read_table(part)
                writer.write_table(table.filter([is_kept(name) for name in table["file_name"].to_pylist()]))

    def unpack(self, path: Path) -> Iterator[Sample]:
        """The rows of a parquet file."""
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(ROW_GROUP):
                for row in batch.to_pylist():
                    pictures = [row.pop(name, None) for name in self.columns("")]
                    yield Sample(row, *(picture and picture["bytes"] for picture in pictures))


class WebDataset:
    """For each outlier the files NAME.png, NAME.json (its row) and, if there are any, NAME.reconstruction.png.

    The suffix is that of another codec where there is another one.
    """

    suffix = "tar"

    def columns(self, suffix: str) -> tuple[str, str]:
        """What follows the name of the outlier, without the dot."""
        return suffix, f"reconstruction.{suffix}"

    def pack(self, path: Path, samples: Sequence[Sample]) -> None:
        """Write samples to a tar file."""
        with tarfile.open(path, "w") as tar:
            for sample in samples:
                name, suffix = Path(sample.row["file_name"]).stem, suffix_of(sample.row["file_name"])
                outlier, reconstruction = self.columns(suffix)
                _add(tar, f"{name}.{outlier}", sample.outlier)
                if sample.reconstruction:
                    _add(tar, f"{name}.{reconstruction}", sample.reconstruction)
                _add(tar, f"{name}.json", json.dumps(sample.row, ensure_ascii=False).encode())

    def merge(self, path: Path, parts: Sequence[Path], is_kept: Callable[[str], bool]) -> None:
        """Write samples of several tar files to one."""
        with tarfile.open(path, "w") as whole:
            for part in parts:
                with tarfile.open(part) as tar:
                    rows = [json.loads(_content(tar, member)) for member in tar if member.name.endswith(".json")]
                    kept = {Path(row["file_name"]).stem for row in rows if is_kept(row["file_name"])}
                    for member in tar:
                        if member.name.split(".")[0] in kept:
                            whole.addfile(member, tar.extractfile(member))

    def unpack(self, path: Path) -> Iterator[Sample]:
        """The samples of a tar file, whose files lie together."""
        with tarfile.open(path) as tar:
            for name, members in groupby(tar, lambda member: member.name.split(".")[0]):
                files = {member.name.removeprefix(f"{name}."): _content(tar, member) for member in members}
                row = json.loads(files["json"])
                outlier, reconstruction = self.columns(suffix_of(row["file_name"]))
                yield Sample(row, files[outlier], files.get(reconstruction))


def suffix_of(file_name: str) -> str:
    """The suffix of an outlier's file, without the dot."""
    return Path(file_name).suffix[1:]


PARQUET: Packing = Parquet()
WEBDATASET: Packing = WebDataset()


def write_table(folder: Path, split: str, samples: Iterable[Sample], shard_bytes: int) -> int:
    """Write samples to `folder/SPLIT-00000-of-00001.parquet` and so on, and give their number.

    Args:
        folder: made if it is not there.
        split: "train" or "test".
        samples: taken a few at a time.
        shard_bytes: size in memory that a file is ended at.
    """
    folder.mkdir(parents=True, exist_ok=True)
    samples, writer, count, size = iter(samples), None, 0, 0
    paths: list[Path] = []
    try:
        while group := list(islice(samples, ROW_GROUP)):
            table = _table(group)
            if writer is None or size >= shard_bytes:
                if writer:
                    writer.close()
                paths.append(folder / f"{len(paths):05d}")
                writer, size = pq.ParquetWriter(paths[-1], table.schema), 0
            writer.write_table(table)
            count, size = count + len(group), size + table.nbytes
    finally:
        if writer:
            writer.close()
    for path in paths:
        path.rename(folder / f"{split}-{path.name}-of-{len(paths):05d}.parquet")
    return count


def _table(samples: Sequence[Sample]) -> pyarrow.Table:
    rows = []
    for sample in samples:
        pictures = {"image": sample.outlier, "reconstruction": sample.reconstruction}
        cells = {name: {"bytes": content, "path": None} for name, content in pictures.items() if content}
        rows.append(cells | sample.row)
    schema = datasets.Features({name: _feature(value) for name, value in rows[0].items()}).arrow_schema
    return pyarrow.Table.from_pylist(rows, schema=schema)


def _feature(value: Any) -> datasets.Image | datasets.Value:
    if isinstance(value, dict):
        return datasets.Image()
    kinds = {str: "string", int: "int64", float: "float64"}
    return datasets.Value(kinds[type(value)])


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None, f"{member.name} is no file"
    return file.read()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
