"""Outliers packed into few large files: parquet and WebDataset, in parts that are merged into shards."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import datasets
import pyarrow
import pyarrow.parquet as pq


@dataclass(frozen=True)
class Sample:
    """One outlier: its row of the metadata table, its PNG file, and that of its source's VAE round trip, or None."""

    row: dict
    outlier: bytes
    reconstruction: bytes | None


class Packing(Protocol):
    """A kind of shard: how samples become a part, and parts a shard."""

    suffix: str
    columns: tuple[str, str]
    """What `datasets` calls the outlier and the reconstruction."""

    def pack(self, path: Path, samples: Sequence[Sample]) -> None:
        """Write samples to a file."""

    def merge(self, path: Path, parts: Sequence[Path], is_kept: Callable[[str], bool]) -> None:
        """Write those samples of several files to one whose `file_name` is kept, one file at a time."""


class Parquet:
    """Rows of the metadata table with the columns `image` and, if there are any, `reconstruction`."""

    suffix = "parquet"
    columns = ("image", "reconstruction")

    def pack(self, path: Path, samples: Sequence[Sample]) -> None:
        """Write samples to a parquet file, as `datasets` does."""
        rows = []
        for sample in samples:
            pictures = {"image": sample.outlier, "reconstruction": sample.reconstruction}
            cells = {name: {"bytes": content, "path": None} for name, content in pictures.items() if content}
            rows.append(cells | sample.row)
        schema = datasets.Features({name: _feature(value) for name, value in rows[0].items()}).arrow_schema
        pq.write_table(pyarrow.Table.from_pylist(rows, schema=schema), path)

    def merge(self, path: Path, parts: Sequence[Path], is_kept: Callable[[str], bool]) -> None:
        """Write rows of several parquet files to one."""
        with pq.ParquetWriter(path, pq.read_schema(parts[0])) as writer:
            for part in parts:
                table = pq.read_table(part)
                writer.write_table(table.filter([is_kept(name) for name in table["file_name"].to_pylist()]))


class WebDataset:
    """For each outlier the files NAME.png, NAME.json (its row) and, if there are any, NAME.reconstruction.png."""

    suffix = "tar"
    columns = ("png", "reconstruction.png")

    def pack(self, path: Path, samples: Sequence[Sample]) -> None:
        """Write samples to a tar file."""
        with tarfile.open(path, "w") as tar:
            for sample in samples:
                name = Path(sample.row["file_name"]).stem
                _add(tar, f"{name}.png", sample.outlier)
                if sample.reconstruction:
                    _add(tar, f"{name}.reconstruction.png", sample.reconstruction)
                _add(tar, f"{name}.json", json.dumps(sample.row, ensure_ascii=False).encode())

    def merge(self, path: Path, parts: Sequence[Path], is_kept: Callable[[str], bool]) -> None:
        """Write samples of several tar files to one."""
        with tarfile.open(path, "w") as whole:
            for part in parts:
                with tarfile.open(part) as tar:
                    rows = [json.load(tar.extractfile(m)) for m in tar if m.name.endswith(".json")]
                    kept = {Path(row["file_name"]).stem for row in rows if is_kept(row["file_name"])}
                    for member in tar:
                        if member.name.split(".")[0] in kept:
                            whole.addfile(member, tar.extractfile(member))


PACKINGS: dict[str, Packing] = {"parquet": Parquet(), "webdataset": WebDataset()}


def _feature(value):
    if isinstance(value, dict):
        return datasets.Image()
    kinds = {str: "string", int: "int64", float: "float64"}
    return datasets.Value(kinds[type(value)])


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
