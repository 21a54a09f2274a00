"""An outlier set on disk, read beside its ID images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from sona_pipeline.common.files import digest_of, read_json, read_json_lines
from sona_pipeline.data.class_names import finder
from sona_pipeline.data.codecs import KeptForm
from sona_pipeline.data.copies import local_copy
from sona_pipeline.data.image_set import ImageSet
from sona_pipeline.data.imaging import decoded, upright
from sona_pipeline.data.rejects import may_pass
from sona_pipeline.data.set_files import (
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

FINGERPRINT = "fingerprint"
"""The column of `metadata.jsonl` that most outliers that look nearly the same have in common."""


@dataclass(frozen=True)
class OutlierPairs:
    """ID images beside what was made of them, all in one order.

    Attributes:
        images: the N ID images.
        outliers: the outlier of each; with several of each, first one of every image, then another of every image.
        reconstructions: the VAE round trip of each image, or None.
        strengths: stop step over number of steps of each outlier, in (0, 1].
        form: that outliers and round trips are kept in; None if it was not recorded, as by version 0.1.0.
        content: a digest of the files of all outliers; None if their hashes are not known.
    """

    images: ImageSet
    outliers: ImageSet
    reconstructions: ImageSet | None
    strengths: tuple[float, ...]
    form: KeptForm | None = None
    content: str | None = None


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
        content=digest_of([row["sha256"] for row in rows]) if all("sha256" in row for row in rows) else None,
    )


def open_outlier_sets(folders: Sequence[str | Path], images: ImageSet) -> OutlierPairs:
    """Open several outlier sets of the same images as one; an image that lacks an outlier in one of them is left out.

    Sets of several seeds give an image several outliers; sets of several settings, a mixture. Round trips are those of
    the first set.

    Args:
        folders: of the sets; one that is named twice gives twice as many of the outliers.
        images: see `open_outlier_set`.

    Raises:
        FileNotFoundError, ValueError: see `open_outlier_set`; or the sets are kept in different sizes or codecs, or no
            image has an outlier in all of them.
    """
    found = [open_outlier_set(folder, images) for folder in folders]
    for folder, pairs in zip(folders, found):
        if pairs.form != found[0].form:
            raise ValueError(
                f"{folders[0]} and {folder} are kept in different sizes or codecs, {found[0].form} and {pairs.form}:"
                " make them with the same --save-size, --codec and --quality"
            )
    common = set(found[0].images.keys).intersection(*(pairs.images.keys for pairs in found))
    if not common:
        raise ValueError(
            f"no image has an outlier in each of {', '.join(map(str, folders))}: give sets of one data set"
        )
    taken = [[k for k, key in enumerate(pairs.images.keys) if key in common] for pairs in found]
    first, rounds = found[0], found[0].reconstructions
    contents = [pairs.content for pairs in found if pairs.content]
    return OutlierPairs(
        images=first.images.take(taken[0]),
        outliers=_one_after_another([pairs.outliers.take(kept) for pairs, kept in zip(found, taken)]),
        reconstructions=rounds.take(taken[0]) if rounds else None,
        strengths=tuple(pairs.strengths[k] for pairs, kept in zip(found, taken) for k in kept),
        form=first.form,
        content="+".join(contents) if len(contents) == len(found) else None,
    )


def _one_after_another(sets: Sequence[ImageSet]) -> ImageSet:
    """Unlabelled images of several sets of one size as one."""
    size = len(sets[0])
    keys = tuple(key for images in sets for key in images.keys)
    return ImageSet(keys, (), (), lambda index: sets[index // size].image(index % size))


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
    if settings["format"] == "folder" or not names:  # no names, no shards to look into
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
    return table_of(folder, form).exists() and not (folder / PARTS).exists()


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
    table = read_json_lines(table_of(folder, read_settings(folder)["format"]))
    rows = _each_once(row for row in chain(_part_rows(folder), table) if "reason" not in row)
    yield from (row for row in rows if row["file_name"] not in rejected)


def read_rejects(folder: str | Path) -> Iterator[dict]:
    """Images of which there is no outlier: the file name it would have, the source's key, and the reason."""
    folder = local_copy(folder, with_shards=False)
    made = {row["file_name"] for row in _part_rows(folder) if "reason" not in row}
    rows = chain(_part_rows(folder), read_json_lines(folder / REJECTS))
    rejects = sorted((row for row in rows if "reason" in row), key=may_pass)  # for good before others
    yield from _each_once(row for row in rejects if row["file_name"] not in made or not may_pass(row))


def _each_once(rows: Iterable[dict]) -> Iterator[dict]:
    seen = set()
    for row in rows:
        if row["file_name"] not in seen:
            seen.add(row["file_name"])
            yield row


def _part_rows(folder: Path) -> Iterator[dict]:
    for path in sorted((folder / PARTS).glob("*.jsonl")):
        yield from read_json_lines(path)


def table_of(folder: Path, form: str) -> Path:
    """The metadata table of a set."""
    return folder / OUTLIERS / METADATA if form == "folder" else folder / METADATA


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
