"""Outlier sets at an address, copied here to be read."""

from __future__ import annotations

import json
from pathlib import Path

from filelock import FileLock
from huggingface_hub import constants

from sona_pipeline.common.disk import make_folder
from sona_pipeline.common.files import digest_of, digest_of_file, read_json, remove, write_bytes, write_with
from sona_pipeline.common.names import expanded
from sona_pipeline.data.remote import Storage, address_of
from sona_pipeline.data.set_files import MANIFEST, SETTINGS


def local_copy(place: str | Path, with_shards: bool = True) -> Path:
    """The folder of a set; of one at an address a copy in a cache, which is brought up to date.

    Args:
        place: folder or address.
        with_shards: whether the outliers themselves are needed.

    Raises:
        ValueError: a shard is not what the manifest says.
        FileNotFoundError, PermissionError, OSError: see `reached`.
    """
    address = address_of(place)
    if not address:
        return expanded(place)
    storage = Storage(address)
    folder = Path(constants.HF_HOME) / "sona" / digest_of(address)
    make_folder(folder)
    with FileLock(folder / ".lock"):
        manifest = copy_tables(storage, folder)
        for entry in manifest["shards"] if with_shards else ():
            if "shard" in entry:
                _copy_shard(storage, entry, folder / entry["shard"])
    return folder


def copy_tables(storage: Storage, folder: Path) -> dict:
    """Copy settings, manifest and the tables that it lists to a folder, as far as they are there.

    Returns:
        The manifest, which may list nothing.
    """
    content = {name: storage.read_if_there(name) for name in (SETTINGS, MANIFEST)}
    manifest = json.loads(content[MANIFEST] or '{"finished": false, "shards": []}')
    known = read_json(folder / MANIFEST)["shards"] if (folder / MANIFEST).exists() else []
    for entry in known:
        if entry not in manifest["shards"]:  # the set was made anew
            remove(*(folder / entry[kind] for kind in ("table", "shard") if kind in entry))
    for entry in manifest["shards"]:
        if not (folder / entry["table"]).exists():
            write_bytes(folder / entry["table"], storage.read(entry["table"]))
    for name, text in content.items():
        if text:
            write_bytes(folder / name, text)
        else:
            (folder / name).unlink(missing_ok=True)
    return manifest


def _copy_shard(storage: Storage, entry: dict, path: Path) -> None:
    if path.exists() and path.stat().st_size == entry["bytes"]:
        return

    def fetch(partial: Path) -> None:
        storage.download(entry["shard"], partial)
        if digest_of_file(partial) != entry["sha256"]:
            raise ValueError(
                f"{storage.address}/{entry['shard']} is damaged or cut short, since it is not what {MANIFEST} says:"
                " make the set again at another address"
            )

    write_with(path, fetch)
