"""An outlier set on disk: written batch by batch so that nothing is lost, and read beside its ID images."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from sona_pipeline.common.disk import sync
from sona_pipeline.common.files import (
    json_lines,
    read_json,
    read_json_lines,
    remove,
    write_lines,
    write_text,
    write_together,
    write_with,
)
from sona_pipeline.data.class_names import finder
from sona_pipeline.data.codecs import KeptForm
from sona_pipeline.data.copies import local_copy
from sona_pipeline.data.image_set import ImageSet
from sona_pipeline.data.imaging import decoded, upright
from sona_pipeline.data.set_files import (
    IMAGE_LIST,
    MANIFEST,
    METADATA,
    OUTLIERS,
    PARTS,
    RECONSTRUCTIONS,
    REJECTS,
    SETTINGS,
)
from sona_pipeline.data.settings import PACKINGS
from sona_pipeline.data.shards import Sample, suffix_of

SHARD_BYTES = 256 << 20
FINGERPRINT = "fingerprint"
"""The column of `metadata.jsonl` that most outliers that look nearly the same have in common."""
MAY_PASS = "may_pass"
"""The column of `rejects.jsonl` that says of a reject that another run may make an outlier of the image."""
_MERGED = ".merged"
_PASSED_IN_0_1_0 = re.compile(r": \[Errno \d+\] |became NaN or|is not finite")
"""Reasons of this kind that version 0.1.0 recorded without that column."""


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
        self.table = _table(folder, form)

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


@dataclass(frozen=True)
class OutlierPairs:
    """ID images beside what was made of them, all in one order.

    Attributes:
        images: the ID images.
        outliers: the outlier of each.
        reconstructions: the VAE round trip of each, or None.
        strengths: stop step over number of steps of each outlier, in (0, 1].
        form: that outliers and round trips are kept in; None if it was not recorded, as by version 0.1.0.
    """

    images: ImageSet
    outliers: ImageSet
    reconstructions: ImageSet | None
    strengths: tuple[float, ...]
    form: KeptForm | None = None


def open_outlier_set(folder: str | Path, images: ImageSet) -> OutlierPairs:
    """Open an outlier set beside its ID images; those without an outlier (rejected ones) are left out.

    Args:
        folder: of the set.
        images: the ID images that it was made of, or more; they belong together by their keys.

    Raises:
        FileNotFoundError: `folder` is not an outlier set.
        ValueError: no image of the set belongs to `images`, or its shards lack outliers, since it is not finished.
    """
    folder = local_copy(folder)
    settings = read_settings(folder)
    row_of = finder({row["source_key"]: row for row in read_rows(folder)})
    pairs = {index: row for index, key in enumerate(images.keys) if (row := row_of(key))}
    if not pairs:
        raise ValueError(f"no outlier in {folder} comes from these images: their keys differ")
    paired, rows = list(pairs), list(pairs.values())
    outliers, reconstructions = open_outliers(folder, [row["file_name"] for row in rows])
    return OutlierPairs(
        images=images.take(paired),
        outliers=outliers,
        reconstructions=reconstructions,
        strengths=tuple(row["stop_step"] / settings["num_inference_steps"] for row in rows),
        form=recorded_form(settings),
    )


def recorded_form(settings: dict) -> KeptForm | None:
    """The form that the pictures of a set are kept in, by its settings; None if these do not say it."""
    size = settings.get("notes", {}).get("model_size")
    return KeptForm(size, settings["save_size"] or size, settings["codec"], settings["quality"]) if size else None


def open_outliers(folder: str | Path, names: Sequence[str]) -> tuple[ImageSet, ImageSet | None]:
    """The outliers with the file names `names`, and the VAE round trips of their sources if the set has them.

    Raises:
        FileNotFoundError: `folder` is not an outlier set.
        ValueError: its shards lack one of them.
    """
    folder = local_copy(folder)
    settings = read_settings(folder)
    kinds = (OUTLIERS, RECONSTRUCTIONS) if settings["reconstructions"] else (OUTLIERS,)
    if settings["format"] == "folder":
        found = [_open_files(folder / kind, names) for kind in kinds]
    else:
        found = [_open_shards(folder / OUTLIERS, settings["format"], kind, names) for kind in kinds]
    return found[0], found[1] if len(found) > 1 else None


def read_samples(folder: str | Path) -> Iterator[Sample]:
    """The outliers of a finished set with their files as they are, a few at a time.

    Raises:
        FileNotFoundError: `folder` is not an outlier set.
        ValueError: the set is not finished.
    """
    place, folder = folder, local_copy(folder)
    settings = read_settings(folder)
    form = settings["format"]
    if "part" in settings:
        raise ValueError(f"{place} is a part of a set: join all parts by `sona merge` first")
    if not _is_finished(folder, form):
        raise ValueError(f"{place} is not finished: let the same `sona generate` go on to its end")
    if form != "folder":
        shards = sorted((folder / OUTLIERS).glob(f"*.{PACKINGS[form].suffix}"))
        return chain.from_iterable(map(PACKINGS[form].unpack, shards))
    return map(lambda row: read_sample(folder, row), read_rows(folder))


def _is_finished(folder: Path, form: str) -> bool:
    if (folder / MANIFEST).exists():
        return read_json(folder / MANIFEST)["finished"]
    return _table(folder, form).exists() and not (folder / PARTS).exists()


def read_sample(folder: Path, row: dict) -> Sample:
    """An outlier of a set of image folders, by its row of the metadata table."""
    outlier, reconstruction = (folder / kind / row["file_name"] for kind in (OUTLIERS, RECONSTRUCTIONS))
    return Sample(row, outlier.read_bytes(), reconstruction.read_bytes() if reconstruction.exists() else None)


def read_settings(folder: str | Path) -> dict:
    """The settings that an outlier set was made with; FileNotFoundError if `folder` is none."""
    path = local_copy(folder, with_shards=False) / SETTINGS
    settings = read_json(path) if path.exists() else {}
    if "ood_labels" not in settings:
        raise FileNotFoundError(f"{folder} is not a set made by `sona generate`: it has no {SETTINGS} of one")
    return settings


def check_no_outlier_set(folder: Path) -> None:
    """Raise ValueError for an outlier set, whose outliers and round trips are no classes of an image folder."""
    try:
        read_settings(folder)
    except (FileNotFoundError, ValueError):
        return
    raise ValueError(
        f"{folder} is a set made by `sona generate`, and no image folder: give {folder / OUTLIERS} for its outliers, or"
        " the folder of the images that they were made of"
    )


def read_rows(folder: str | Path) -> Iterator[dict]:
    """The rows of a set's metadata table, and of what an unfinished run has added; one for each outlier."""
    folder = local_copy(folder, with_shards=False)
    rejected = {row["file_name"] for row in read_rejects(folder)}
    table = read_json_lines(_table(folder, read_settings(folder)["format"]))
    rows = _each_once(row for row in chain(_part_rows(folder), table) if "reason" not in row)
    yield from (row for row in rows if row["file_name"] not in rejected)


def read_rejects(folder: str | Path) -> Iterator[dict]:
    """Images of which there is no outlier: the file name it would have, the source's key, and the reason."""
    folder = local_copy(folder, with_shards=False)
    made = {row["file_name"] for row in _part_rows(folder) if "reason" not in row}
    rows = chain(_part_rows(folder), read_json_lines(folder / REJECTS))
    rejects = (row for row in rows if "reason" in row)
    yield from _each_once(row for row in rejects if row["file_name"] not in made or not may_pass(row))


def hash_of(file_name: str) -> int:
    """The hash of an image's key, which the file of its outlier is named by."""
    return int(Path(file_name).stem, 16)


def reasons_of(rejects: Iterable[dict]) -> Counter[str]:
    """How many images have no outlier, by reason without file names and measured values."""
    return Counter(_kind(row["reason"]) for row in rejects)


def _kind(reason: str) -> str:
    if reason.endswith("does not exist") or "[Errno 2]" in reason:
        return "does not exist"
    if reason.endswith("may not be read") or "[Errno 13]" in reason:
        return "may not be read"
    if "cannot be read" in reason:
        return "cannot be read as an image"
    return re.sub(r"looks like .*", "looks like another outlier", re.sub(r" [-\d.e]+ ([<>])", r" \1", reason))


def may_pass(reject: dict) -> bool:
    """Whether an image was rejected for a reason that may pass: a missing file, or numbers that overflowed."""
    return reject.get(MAY_PASS, False) or bool(_PASSED_IN_0_1_0.search(reject["reason"]))


def _write(content: bytes, path: Path) -> None:
    path.write_bytes(content)


def _each_once(rows: Iterable[dict]) -> Iterator[dict]:
    seen = set()
    for row in rows:
        if row["file_name"] not in seen:
            seen.add(row["file_name"])
            yield row


def _part_rows(folder: Path) -> Iterator[dict]:
    for path in sorted((folder / PARTS).glob("*.jsonl")):
        yield from read_json_lines(path)


def _table(folder: Path, form: str) -> Path:
    return folder / OUTLIERS / METADATA if form == "folder" else folder / METADATA


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


def _open_files(root: Path, names: Sequence[str]) -> ImageSet:
    return ImageSet(tuple(names), (), (), lambda index: upright(root / names[index]))


def _open_shards(root: Path, form: str, kind: str, names: Sequence[str]) -> ImageSet:
    import datasets

    shards = sorted(str(path) for path in root.glob(f"*.{PACKINGS[form].suffix}"))
    if not shards:
        raise ValueError(f"{root} has no shards yet: let `sona generate` finish the set")
    table = datasets.load_dataset(form, data_files=shards, split="train")
    column = PACKINGS[form].columns(suffix_of(names[0]))[kind == RECONSTRUCTIONS]
    rows = table["file_name"] if form == "parquet" else (row["file_name"] for row in table["json"])
    place = {name: index for index, name in enumerate(rows)}
    if missing := [name for name in names if name not in place]:
        raise ValueError(f"{root} lacks {len(missing)} outliers of the table: let `sona generate` finish the set")
    pictures = table.select_columns([column])
    return ImageSet(
        tuple(names), (), (), lambda i: decoded(lambda: pictures[place[names[i]]][column], f"{names[i]} in {root}")
    )
