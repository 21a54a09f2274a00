"""An outlier set on disk, and its pairing with the ID images that it was made of."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from sona_pipeline.data import ImageSet, upright
from sona_pipeline.files import JsonLines

OUTLIERS, RECONSTRUCTIONS = "outliers", "reconstructions"


@dataclass(frozen=True)
class OutlierPairs:
    """ID images beside what was made of them, all in one order.

    Attributes:
        images: the ID images.
        outliers: the outlier of each.
        reconstructions: the VAE round trip of each, or None.
        strengths: stop step over number of steps of each outlier, in (0, 1].
    """

    images: ImageSet
    outliers: ImageSet
    reconstructions: ImageSet | None
    strengths: tuple[float, ...]


def open_outlier_set(folder: str | Path, images: ImageSet) -> OutlierPairs:
    """Open an outlier set beside its ID images; those without an outlier (rejected ones) are left out.

    Raises:
        FileNotFoundError: `folder` is not an outlier set.
        ValueError: no image of the set belongs to `images`.
    """
    root = Path(folder) / OUTLIERS
    if not (root / "metadata.jsonl").exists():
        raise FileNotFoundError(
            f"{root / 'metadata.jsonl'} does not exist: {folder} is not a set made by `sona generate`"
        )
    steps = json.loads((Path(folder) / "settings.json").read_text(encoding="utf-8"))["num_inference_steps"]
    row_of = {row["source_key"]: row for row in JsonLines(root / "metadata.jsonl").rows}
    paired = [index for index, key in enumerate(images.keys) if key in row_of]
    if not paired:
        raise ValueError(f"no outlier in {folder} comes from these images: their keys differ")
    rows = [row_of[images.keys[index]] for index in paired]
    names = [row["file_name"] for row in rows]
    round_trips = Path(folder) / RECONSTRUCTIONS
    complete = all((round_trips / name).exists() for name in names)
    return OutlierPairs(
        images=images.take(paired),
        outliers=_open_files(root, names),
        reconstructions=_open_files(round_trips, names) if complete else None,
        strengths=tuple(row["stop_step"] / steps for row in rows),
    )


def _open_files(root: Path, names: list[str]) -> ImageSet:
    return ImageSet(tuple(names), (), (), lambda index: upright(root / names[index]))
