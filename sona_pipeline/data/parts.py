"""Parts of a set that were made apart, and the set that they make together."""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from sona_pipeline.common.files import digest, only_run, read_json, read_json_lines, settle_settings
from sona_pipeline.common.messages import brief
from sona_pipeline.common.places import check_once
from sona_pipeline.data.copies import local_copy
from sona_pipeline.data.outlier_set import read_rejects, read_rows, read_sample, read_settings
from sona_pipeline.data.set_files import MANIFEST, PARTS, SETTINGS, hash_of
from sona_pipeline.data.settings import PACKINGS
from sona_pipeline.data.shards import Sample
from sona_pipeline.data.uploads import check_place, writer_to

OF_PARTS = ("part", "batch_size", "images")
"""Settings that a part has and the whole set has not."""


class Part(NamedTuple):
    """The part `number`, from 1 on, of `total` parts."""

    number: int
    total: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """The part in a text such as "2/8"; ValueError if it is none."""
        found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        if not found:
            raise ValueError(f"the part is {text!r}, but has to be I/N, such as 2/8 for the second of eight")
        part = cls(*map(int, found.groups()))
        if not 1 <= part.number <= part.total:
            raise ValueError(f"there is no part {text}: parts are counted from 1/N to N/N")
        return part

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"


class Batch(NamedTuple):
    """What a part has of a batch."""

    name: str
    samples: list[Sample]
    rejects: list[dict]


@dataclass(frozen=True)
class FinishedPart:
    """A finished part.

    Attributes:
        folder: that it, or a copy of it, lies in.
        settings: that it was made with.
        part: which one it is.
        names: of its batches.
        shards: what a part at an address was made of, as its manifest has it.
    """

    folder: Path
    settings: dict
    part: Part
    names: tuple[str, ...]
    shards: tuple[dict, ...] = ()

    def batches(self) -> Iterator[Batch]:
        """Its batches in the order of their names; OSError or ValueError if a file of them is missing or damaged."""
        for shard in self.shards:
            yield from self._batches_of(shard)
        for name in self.names if not self.shards else ():
            table = list(read_json_lines(self.folder / PARTS / f"{name}.jsonl"))
            rows = [row for row in table if "reason" not in row]
            samples = self._samples(name, rows) if rows else []
            yield Batch(name, samples, [row for row in table if "reason" in row])

    def _batches_of(self, shard: dict) -> Iterator[Batch]:
        """The batches in a shard, whose rejects all come with the first one."""
        table = read_json_lines(self.folder / shard["table"])
        rejects = [row for row in table if "reason" in row]
        form = self.settings["format"]
        samples = PACKINGS[form].unpack(self.folder / shard["shard"]) if "shard" in shard else iter(())
        for name, count in shard["batches"].items():
            yield Batch(name, list(islice(samples, count)), rejects)
            rejects = []

    def _samples(self, name: str, rows: list[dict]) -> list[Sample]:
        form = self.settings["format"]
        try:
            if form == "folder":
                samples = [read_sample(self.folder, row) for row in rows]
            else:
                samples = list(PACKINGS[form].unpack(self.folder / PARTS / f"{name}.{PACKINGS[form].suffix}"))
        except Exception as error:  # whatever a damaged file makes of its reader
            raise ValueError(
                f"batch {name} of {self.folder} cannot be read ({brief(error)}): make the part again"
            ) from error
        if [digest(sample.outlier) for sample in samples] != [row["sha256"] for row in rows]:
            raise ValueError(f"batch {name} of {self.folder} is damaged: make the part again")
        return samples


def open_part(place: str | Path) -> FinishedPart:
    """A finished part.

    Raises:
        FileNotFoundError: there is no outlier set.
        ValueError: it is a whole set, or not finished, or a file of it is missing.
    """
    folder = local_copy(place)
    settings = read_settings(folder)
    if "part" not in settings:
        raise ValueError(f"{folder} is a whole set and no part: parts are made by `sona generate --part I/N`")
    what, way_out = f"{folder}, part {settings['part']}", "let the same `sona generate` go on to its end"
    if not (folder / MANIFEST).exists():
        raise ValueError(f"{what}, is not finished: {way_out}")
    manifest = read_json(folder / MANIFEST)
    if not manifest.get("finished", True):
        raise ValueError(f"{what}, is not finished: {way_out}")
    part = Part.parse(settings["part"])
    if "shards" in manifest:
        names = tuple(name for shard in manifest["shards"] for name in shard["batches"])
        return FinishedPart(folder, settings, part, names, tuple(manifest["shards"]))
    names = tuple(sorted(manifest["batches"]))
    if missing := [name for name in names if not (folder / PARTS / f"{name}.jsonl").exists()]:
        raise ValueError(f"{what}, lacks {len(missing)} of its batches, such as {missing[0]}: {way_out}")
    return FinishedPart(folder, settings, part, names)


def merge_parts(places: Sequence[str | Path], output: str | Path) -> int:
    """Join the parts of a set into the very set that one run makes, and go on where an earlier merger stopped.

    Args:
        places: folders of all its parts, in any order; they stay as they are.
        output: folder of the set.

    Places and output may be addresses.

    Returns:
        The number of outliers in the set.

    Raises:
        FileNotFoundError: one of the places is no outlier set.
        ValueError: parts are missing, given twice, not finished, damaged, or of different settings or images.
        BlockingIOError: another run is writing to the folder.
        OSError: the disk fails or is full.
    """
    check_once((str(place), str(place)) for place in places)
    parts = [open_part(place) for place in places]
    check_parts(parts)
    fixed = {key: value for key, value in parts[0].settings.items() if key not in OF_PARTS}
    notes = fixed.pop("notes")
    notes["dtype"] = ", ".join(dict.fromkeys(part.settings["notes"]["dtype"] for part in parts))
    check_place(output, fixed["format"], fixed["drop_duplicates"])
    with writer_to(output, fixed["format"]) as writer, only_run(writer.folder):
        settle_settings(writer.folder / SETTINGS, fixed, notes)
        known = writer.done(fixed["reconstructions"])
        known |= {hash_of(row["file_name"]) for row in read_rejects(writer.folder)}
        for batch in heapq.merge(*(part.batches() for part in parts), key=lambda batch: batch.name):
            samples = [sample for sample in batch.samples if hash_of(sample.row["file_name"]) not in known]
            rejects = [row for row in batch.rejects if hash_of(row["file_name"]) not in known]
            if samples or rejects:
                writer.commit(batch.name, samples, rejects)
        writer.finish(fixed["drop_duplicates"])
        return sum(1 for _ in read_rows(writer.folder))


def check_parts(parts: Sequence[FinishedPart]) -> None:
    """Raise ValueError if the parts are not all the parts of one set, each once."""
    first = parts[0]
    seen: dict[Part, FinishedPart] = {}
    for part in parts:
        _check_alike(first, part)
        if other := seen.get(part.part):
            raise ValueError(f"{other.folder} and {part.folder} are both part {part.part}: give one of them")
        seen[part.part] = part
    total = first.part.total
    every = (Part(number, total) for number in range(1, total + 1))
    if missing := [str(one) for one in every if one not in seen]:
        are = "parts {} are" if len(missing) > 1 else "part {} is"
        shown = ", ".join(missing[:8]) + (", ..." if len(missing) > 8 else "")
        raise ValueError(f"{are.format(shown)} missing: give the folders of all {total} parts")


def _check_alike(one: FinishedPart, other: FinishedPart) -> None:
    totals = one.part.total, other.part.total
    if totals[0] != totals[1]:
        raise ValueError(
            f"{one.folder} is one of {totals[0]} parts and {other.folder} one of {totals[1]}: give parts of one set"
        )
    for key in sorted(one.settings.keys() | other.settings.keys()):
        if key not in ("part", "notes") and one.settings.get(key) != other.settings.get(key):
            values = (str(part.settings.get(key))[:60] for part in (one, other))
            pairs = " and ".join(f"{value} in {part.folder}" for value, part in zip(values, (one, other)))
            raise ValueError(f"parts of one set have the same {key}, but it is {pairs}: give parts of one command")
