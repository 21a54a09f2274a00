"""Parquet files in a folder: which of them are the split that is asked for, as `datasets` tells splits."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sona_pipeline.common.files import read_text
from sona_pipeline.data.walk import Walk

if TYPE_CHECKING:
    from datasets import Features

PARQUET = ".parquet"


def parquet_files(root: Path, split: str) -> tuple[list[Path], Features | None]:
    """The parquet files of a split in a folder, and the features that its README.md says they have.

    A README.md with `configs`, as data sets on the Hub have it, says which files a split has; without one their names
    and folders do (`train-00000-of-00002.parquet`, `data/test-...`, `train/0000.parquet`). Files that lie in the folder
    itself and whose names tell no splits are all taken, whatever split is asked for.

    Args:
        root: of the files, or of a cloned data set.
        split: name of the split as `datasets` has it: "train", "validation", "test", or one of its own.

    Returns:
        No files, if the folder is none of parquet files.

    Raises:
        ValueError: there is no such split, a file belongs to none, or the README.md tells several data sets.
    """
    files = sorted(root / name for name in Walk(root, {PARQUET}))
    if not files:
        return [], None
    if is_configured(root):
        return _configured(root, split)
    splits = _splits_by_name(root, files)
    if not splits:
        return [file for file in files if file.parent == root], None
    known = {file for some in splits.values() for file in some}
    if stray := [file.relative_to(root).as_posix() for file in files if file not in known]:
        raise ValueError(
            f"{root} holds the splits {list(splits)}, and {stray[0]} belongs to none of them: move it away, or name the"
            " split in its name"
        )
    return _chosen(root, splits, split), None


def is_configured(root: Path) -> bool:
    """Whether a README.md says which files the splits of a data set have, as on the Hub."""
    readme = root / "README.md"
    return os.path.isfile(readme) and "data_files:" in read_text(readme)


def _splits_by_name(root: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    """The files of each split; none if the names tell no splits."""
    from datasets.data_files import DataFilesDict, get_data_patterns

    base = root.resolve()
    patterns = {str(name): some for name, some in get_data_patterns(str(base)).items()}
    if patterns == {"train": ["**"]}:
        return {}
    found = DataFilesDict.from_patterns(patterns, base_path=str(base), allowed_extensions=[PARQUET])
    return _as_walked(base, root, found, files)


def _as_walked(base: Path, root: Path, found: Mapping, files: Sequence[Path]) -> dict[str, list[Path]]:
    """What `datasets` found under `base`, in the words and order of `files` under `root`; without empty splits."""
    place = {str(base / file.relative_to(root)): file for file in files}
    splits = {str(name): sorted(place[path] for path in some if path in place) for name, some in found.items()}
    return {name: some for name, some in splits.items() if some}


def _configured(root: Path, split: str) -> tuple[list[Path], Features | None]:
    import datasets

    base = root.resolve()
    names = datasets.get_dataset_config_names(str(base))
    default = names[0] if len(names) == 1 else datasets.get_dataset_default_config_name(str(base))
    if default is None:
        raise ValueError(f"{root} holds several data sets, {names}: give the folder or the file of one")
    builder = datasets.load_dataset_builder(str(base), default)
    files = [root / name for name in Walk(root, {PARQUET})]
    splits = _as_walked(base, root, builder.config.data_files or {}, files)
    return (_chosen(root, splits, split), builder.info.features) if splits else ([], None)


def _chosen(root: Path, splits: Mapping[str, list[Path]], split: str) -> list[Path]:
    if split not in splits:
        raise ValueError(f"{root} has no split {split!r}; its splits are {list(splits)}: name one of these")
    return splits[split]
