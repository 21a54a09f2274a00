"""Scores of detectors kept beside a table: it is made row by row, and needs no detector that was scored before."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd

from sona_pipeline import ImageSet, TestSets, read_scores, settle_settings, write_text

MADE, WORK, THRESHOLDS, VERSIONS = "made", "seconds", "thresholds", "versions"
"""Attributes of a record: how its detector was made, seconds of work by what was made for it, thresholds by score, and
versions of packages."""
PARTS = ("text_encoder", "unet", "vae")
"""Folders of a diffusion model that outliers follow from."""

Scores = Mapping[str, Mapping[str, Sequence[pd.DataFrame]]]
"""Of the detectors of a table, by test and row, a table a seed."""


class Records:
    """The scores of the detectors of a table, a parquet file a detector and test.

    What images are is told by their keys and labels; pixels do not count.

    Args:
        folder: of the files.
        tests: what detectors are scored on, by the name of the test.
        train: the ID training images.
        model: folder of the diffusion model that outliers are made by.

    Raises:
        ValueError: the folder has scores of other images, or of another model.
    """

    def __init__(self, folder: Path, tests: Mapping[str, TestSets], train: ImageSet, model: Path):
        self.folder, self.tests = folder, tests
        images = {f"{test}/{name}": _digest_of(images) for test, sets in tests.items() for _, name, images in sets}
        settings = {"train": _digest_of(train), **images, "model": digest_of_model(model)}
        settle_settings(folder / "settings.json", settings)

    def of(self, stem: str, made: str, make: Callable[[], Mapping[str, pd.DataFrame]]) -> dict[str, pd.DataFrame]:
        """The scores of a detector by test.

        Args:
            stem: of the names of its files.
            made: how the detector is made, and what it is judged by.
            make: scores it by test, where a file is missing; each table has the attributes of a record.

        Raises:
            ValueError: the file is of a detector that was made otherwise.
        """
        paths = self._paths(stem)
        if not self.has(stem):
            for test, table in make().items():
                paths[test].parent.mkdir(exist_ok=True)
                partial = paths[test].with_suffix(".partial")
                _compact(table).to_parquet(partial, index=False, compression="zstd", compression_level=19)
                partial.replace(paths[test])
        found = {test: read_scores(path) for test, path in paths.items()}
        for test, table in found.items():
            if table.attrs[MADE] != made:
                raise ValueError(
                    f"{paths[test]} is of a detector that was made otherwise ({table.attrs[MADE]} then, {made} now):"
                    " remove it, or choose another folder for results"
                )
        return found

    def has(self, stem: str) -> bool:
        """Whether the detector is scored on all tests."""
        return all(path.exists() for path in self._paths(stem).values())

    def _paths(self, stem: str) -> dict[str, Path]:
        return {test: self.folder / test / f"{stem}.parquet" for test in self.tests}

    def set_of(self, name: str, make: Callable[[str], dict]) -> dict:
        """What the table says of an outlier set; `make` finds it by the name, if it is not there yet."""
        path = self.folder / "sets" / f"{name}.json"
        if not path.exists():
            write_text(path, json.dumps(make(name), indent=2) + "\n")
        return json.loads(path.read_text(encoding="utf-8"))


def digest_of_model(folder: Path) -> str:
    """A digest of the weights of a diffusion model."""
    files = [file for part in PARTS for file in sorted((folder / part).glob("*.safetensors"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def seconds_of(scores: Scores) -> dict[str, int]:
    """Seconds of work by what was made, of all records."""
    return {name: count for attributes in _attributes(scores) for name, count in attributes[WORK].items()}


def versions_of(scores: Scores) -> list[dict[str, str]]:
    """Versions of packages of all records."""
    return [attributes[VERSIONS] for attributes in _attributes(scores)]


def _attributes(scores: Scores) -> list[dict]:
    return [table.attrs for by_row in scores.values() for tables in by_row.values() for table in tables]


def _compact(table: pd.DataFrame) -> pd.DataFrame:
    """The table with numbers that take less room: what networks compute in float32, the confidence to four digits."""
    single = {name: "float32" for name in table.select_dtypes("floating")}
    return table.round({"confidence": 4}).astype(single | {"label": "int16", "predicted": "int16"})


def _digest_of(images: ImageSet) -> str:
    content = json.dumps([list(images.keys), list(images.labels), list(images.classes)])
    return hashlib.sha256(content.encode()).hexdigest()[:16]
