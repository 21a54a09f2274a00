"""Writing an outlier set: batch by batch, so that nothing is lost."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Container, Iterable, Sequence
from functools import partial
from pathlib import Path

from sona_pipeline.common.disk import sync
from sona_pipeline.common.files import (
    json_lines,
    read_json_lines,
    remove,
    write_lines,
    write_text,
    write_together,
    write_with,
)
from sona_pipeline.data.outlier_set import FINGERPRINT, read_rejects, read_rows, table_of
from sona_pipeline.data.rejects import may_pass
from sona_pipeline.data.set_files import (
    IMAGE_LIST,
    MANIFEST,
    OUTLIERS,
    PARTS,
    RECONSTRUCTIONS,
    REJECTS,
    SETTINGS,
    hash_of,
)
from sona_pipeline.data.settings import PACKINGS
from sona_pipeline.data.shards import Sample

SHARD_BYTES = 256 << 20
_MERGED = ".merged"


class OutlierWriter:
    """Writes the outliers of a run, and merges them into a set at its end.

    Each batch is committed by one small file under `.parts`, written when everything else of it is on the disk; a run
    that is killed, or whose machine loses its power, loses the batches in flight and nothing else. `finish` merges the
    parts and takes them away.

    Args:
        folder: of the set.
        form: "folder" (image folders), "parquet" or "webdataset".
        is_part: of a set that `merge_parts` will make of all its parts: its batches stay as they were committed.
    """

    def __init__(self, folder: Path, form: str, is_part: bool = False):
        self.folder, self.form, self.is_part = folder, form, is_part
        self.parts = folder / PARTS
        self.table = table_of(folder, form)

    def done(self, reconstructions: bool) -> set[int]:
        """Hashes of the image keys whose outliers are there, or were rejected for good."""
        made = {row["file_name"] for row in read_rows(self.folder)}
        if self.form == "folder":
            made &= _files_under(self.folder / OUTLIERS)
            if reconstructions:
                made &= _files_under(self.folder / RECONSTRUCTIONS)
        rejected = {row["file_name"] for row in read_rejects(self.folder) if not may_pass(row)}
        return set(map(hash_of, made | rejected))

    def discard(self) -> None:
        """Take away the settings and rejects of runs that have made no outlier, so that others may be chosen."""
        if (self.folder / SETTINGS).exists() and not any(True for _ in read_rows(self.folder)):
            remove(self.folder / REJECTS, *self.parts.glob("*"))
            remove(self.folder / SETTINGS)

    def commit(self, name: str, samples: Sequence[Sample], rejects: Sequence[dict]) -> None:
        """Bring a batch to the disk.

        Args:
            name: of the batch, unique in the set.
            samples: its outliers.
            rejects: the images of which there is none, as rows of `file_name`, `source_key` and `reason`, and with
                `may_pass` where another run may make it.
        """
        if self.form == "folder":
            write_together(self._pictures(samples))
        elif samples:
            packing = PACKINGS[self.form]
            write_with(self.parts / f"{name}.{packing.suffix}", lambda path: packing.pack(path, samples))
        write_text(self.parts / f"{name}.jsonl", json_lines([*(sample.row for sample in samples), *rejects]))

    def _pictures(self, samples: Sequence[Sample]) -> dict[Path, Callable[[Path], object]]:
        """What writes the files of image folders, by their paths."""
        files: dict[Path, Callable[[Path], object]] = {}
        for sample in samples:
            for kind, content in ((RECONSTRUCTIONS, sample.reconstruction), (OUTLIERS, sample.outlier)):
                if content:
                    files[self.folder / kind / sample.row["file_name"]] = partial(_write, content)
        return files

    def committed(self) -> set[str]:
        """Names of the batches that any process has committed since the last `finish`."""
        return {path.stem for path in self.parts.glob("*.jsonl")}

    def finish(self, drop_duplicates: bool = False) -> None:
        """Merge everything committed into the tables and shards of the set.

        With `drop_duplicates`, of outliers with one fingerprint only one stays: that which was merged before, else the
        one with the first file name. After a kill the next `finish` comes to the same end; without anything new it
        touches nothing. Of a part it only says that all batches are there.
        """
        if self.is_part:
            write_text(self.folder / MANIFEST, json.dumps({"batches": sorted(self.committed())}, indent=2) + "\n")
            return
        self._clear(self.folder / _MERGED)
        if self.table.exists() and not self.parts.exists():
            return
        for listing in self.parts.glob("*.merge"):
            self._end_merge(listing)
        rejects = {row["file_name"]: row for row in read_rejects(self.folder)}
        if drop_duplicates:
            rejects |= _duplicates(read_rows(self.folder), self._merged(rejects))
        if rejects:
            write_text(self.folder / REJECTS, json_lines(rejects[name] for name in sorted(rejects)))
        else:
            remove(self.folder / REJECTS)
        if self.form == "folder":
            self._remove(rejects)
        else:
            self._merge_parts(rejects)
        self._write_tables()
        if self.parts.exists():  # all at once: a reject may outlive the row that took its place
            os.replace(self.parts, self.folder / _MERGED)
            sync(self.folder)
            self._clear(self.folder / _MERGED)

    def _clear(self, folder: Path) -> None:
        """Take away a folder of files, if it is there."""
        if folder.exists():
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()

    def _write_tables(self) -> None:
        lines = {row["file_name"]: json_lines([row]) for row in read_rows(self.folder)}
        names = sorted(lines)
        if self.form == "folder":
            write_lines(self.folder / IMAGE_LIST, (f"{OUTLIERS}/{name} -1\n" for name in names))
        write_lines(self.table, (lines[name] for name in names))

    def _remove(self, names: Iterable[str]) -> None:
        remove(*(self.folder / kind / name for name in names for kind in (OUTLIERS, RECONSTRUCTIONS)))

    def _merged(self, rejects: Container[str]) -> set[str]:
        """File names of the outliers that were merged before: those in the table, and in parts that shards took in."""
        names = {row["file_name"] for row in read_json_lines(self.table)}
        for part in self.parts.glob("*.jsonl") if self.form != "folder" else ():
            if not self._payload(part).exists():
                names |= {row["file_name"] for row in read_json_lines(part)}
        return {name for name in names if name not in rejects}

    def _merge_parts(self, dropped: Container[str]) -> None:
        """Merge the committed parts, in the order of their names, into shards of about `SHARD_BYTES`."""
        group, size = [], 0
        parts = [payload for p in sorted(self.parts.glob("*.jsonl")) if (payload := self._payload(p)).exists()]
        for part in parts:
            rows = read_json_lines(part.with_suffix(".jsonl"))
            if any("reason" not in row and row["file_name"] not in dropped for row in rows):
                group.append(part)
                size += part.stat().st_size
            if group and (self._fills_a_shard(size) or part == parts[-1]):
                self._merge(group, dropped)
                group, size = [], 0

    def _fills_a_shard(self, size: int) -> bool:
        return size >= SHARD_BYTES

    def _merge(self, group: Sequence[Path], dropped: Container[str]) -> None:
        listing = self.parts / f"{group[0].stem}.merge"
        write_text(listing, "\n".join(path.name for path in group))
        packing = PACKINGS[self.form]
        write_with(self._shard(listing), lambda path: packing.merge(path, group, lambda name: name not in dropped))
        self._end_merge(listing)

    def _payload(self, part: Path) -> Path:
        return part.with_suffix(f".{PACKINGS[self.form].suffix}")

    def _end_merge(self, listing: Path) -> None:
        """Take away the parts in a listing if their shard is there; a kill may have come before or after it."""
        if self._shard(listing).exists():
            sync(self._shard(listing).parent)
            remove(*(self.parts / name for name in listing.read_text(encoding="utf-8").splitlines()))
        listing.unlink()

    def _shard(self, listing: Path) -> Path:
        return self.folder / OUTLIERS / f"train-{listing.stem}.{PACKINGS[self.form].suffix}"


def _write(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def _duplicates(rows: Iterable[dict], merged: Container[str]) -> dict[str, dict]:
    """Rejects of the outliers that look like one that was merged before, or that has an earlier file name."""
    marks = {row["file_name"]: (row[FINGERPRINT], row["source_key"]) for row in rows}
    first: dict[str, str] = {}
    rejects = {}
    for name in sorted(marks, key=lambda name: (name not in merged, name)):
        mark, key = marks[name]
        if (kept := first.setdefault(mark, name)) != name:
            rejects[name] = {"file_name": name, "source_key": key, "reason": f"looks like {kept}"}
    return rejects


def _files_under(root: Path) -> set[str]:
    """Files in the class folders of `root`, as `class/name`."""
    folders = [entry for entry in os.scandir(root) if entry.is_dir()] if root.exists() else []
    return {f"{folder.name}/{name}" for folder in folders for name in os.listdir(folder)}
