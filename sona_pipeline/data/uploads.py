"""Outlier sets that go to an address: by whole shards, each with a manifest that is written after it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sona_pipeline.common.files import digest, digest_of_file, json_lines, read_json_lines
from sona_pipeline.common.names import expanded
from sona_pipeline.data.copies import copy_tables
from sona_pipeline.data.outlier_writer import OutlierWriter
from sona_pipeline.data.remote import Storage, address_of
from sona_pipeline.data.set_files import MANIFEST, METADATA, OUTLIERS, PARTS, REJECTS, SETTINGS
from sona_pipeline.data.settings import PACKINGS
from sona_pipeline.data.shards import Sample


@contextmanager
def writer_to(output: str | Path, form: str, is_part: bool = False) -> Iterator[OutlierWriter]:
    """A writer to a folder, or to an address by way of a temporary folder; what is raised is told by `reached`."""
    address = address_of(output)
    if not address:
        yield OutlierWriter(expanded(output), form, is_part)
        return
    with tempfile.TemporaryDirectory(prefix="sona-set-") as folder:
        yield UploadingWriter(Storage(address), Path(folder), form, is_part)


def check_place(
    output: str | Path, form: str, drop_duplicates: bool = False, processes: int = 1, dry_run: bool = False
) -> None:
    """Raise an error if a set cannot be written to an address; `reached` tells what else than ValueError.

    Args:
        output: folder or address.
        form: of the set.
        drop_duplicates: whether the set is to be gone through once more at its end.
        processes: that would write together.
        dry_run: do not try whether the address can be written to.
    """
    address = address_of(output)
    if not address:
        return
    if form not in PACKINGS:
        raise ValueError(f"{address} takes a set by whole shards: choose --format {' or '.join(PACKINGS)}")
    if drop_duplicates:
        raise ValueError(
            f"what went to {address} stays, so that no duplicates can be dropped at the end: write parts there and join"
            " them on this machine, or write to a folder"
        )
    if processes > 1:
        raise ValueError(f"{processes} processes cannot write to {address} together: let each make a --part of its own")
    storage = Storage(address)
    if not dry_run:
        storage.write(f"{PARTS}/here", b"")
        storage.remove(f"{PARTS}/here")


class UploadingWriter(OutlierWriter):
    """Writes the outliers of a run to storage; a run that is killed loses at most the shard in flight.

    Batches wait in a folder of this machine until they fill a shard. That is uploaded, then the table of its rows and
    of the rejects so far, and then the manifest, which lists both: what is not in it does not count. A run that finds
    the manifest changed by another one stops; runs that begin within the same moment may still meet.

    Args:
        storage: where the set goes.
        folder: empty and temporary; gets what a run has to know of the set.
        form: "parquet" or "webdataset".
        is_part: see `OutlierWriter`.
    """

    def __init__(self, storage: Storage, folder: Path, form: str, is_part: bool = False):
        super().__init__(folder, form, is_part)
        self.storage = storage
        self.shards: list[dict] = copy_tables(storage, folder)["shards"]
        self._manifest = (folder / MANIFEST).read_bytes() if (folder / MANIFEST).exists() else None
        self._waiting: list[Path] = []
        self._size = 0

    def discard(self) -> None:
        """Take away what runs that have made no outlier have left."""
        super().discard()
        if not (self.folder / SETTINGS).exists():
            self.shards = []

    def commit(self, name: str, samples: Sequence[Sample], rejects: Sequence[dict]) -> None:
        """Keep a batch, and upload all that waits when it fills a shard."""
        super().commit(name, samples, rejects)
        self._waiting.append(self.parts / f"{name}.jsonl")
        if samples:
            self._size += self._payload(self._waiting[-1]).stat().st_size
        if self._fills_a_shard(self._size):
            self._upload()

    def finish(self, drop_duplicates: bool = False) -> None:
        """Upload the last shard, the tables of the set, and a manifest that says that it is finished."""
        if self._waiting:
            self._upload()
        if not self.is_part:
            super().finish(drop_duplicates)
            for name in (REJECTS, METADATA):
                if (self.folder / name).exists():
                    self.storage.write(name, (self.folder / name).read_bytes())
                else:
                    self.storage.remove(name)
        self._write_manifest(is_finished=True)

    def _upload(self) -> None:
        self._check_alone()
        tables, self._waiting, self._size = self._waiting, [], 0
        rows = {table.stem: list(read_json_lines(table)) for table in tables}
        entry: dict = {
            "table": f"{PARTS}/{len(self.shards):05d}-{tables[0].stem}.jsonl",  # no batch of another run is called so
            "batches": {name: sum("reason" not in row for row in some) for name, some in rows.items()},
        }
        if group := [payload for table in tables if (payload := self._payload(table)).exists()]:
            self._merge(group, ())
            shard = self.folder / OUTLIERS / f"train-{group[0].stem}.{PACKINGS[self.form].suffix}"
            entry["shard"] = f"{OUTLIERS}/{shard.name}"
            entry |= {"bytes": shard.stat().st_size, "sha256": digest_of_file(shard)}
            self.storage.upload(shard, entry["shard"])
            shard.unlink()
        table = json_lines(row for some in rows.values() for row in some).encode()
        entry["table_sha256"] = digest(table)
        self.storage.write(entry["table"], table)
        self.shards.append(entry)
        self._write_manifest(is_finished=False)

    def _write_manifest(self, is_finished: bool) -> None:
        self.storage.write(SETTINGS, (self.folder / SETTINGS).read_bytes())
        self._check_alone()
        content = {"finished": is_finished, "shards": self.shards}
        self._manifest = (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()
        self.storage.write(MANIFEST, self._manifest)

    def _check_alone(self) -> None:
        """Raise BlockingIOError if the manifest is not the one that this run has read or written last."""
        if self.storage.read_if_there(MANIFEST) != self._manifest:
            raise BlockingIOError(
                f"another run is writing to {self.storage.address}: wait for its end, or choose another address"
            )
