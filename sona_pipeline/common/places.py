"""Places of data and models that are given on a command line: which of them are one, or lie in one another."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from sona_pipeline.common.names import expanded


def real_place(place: str) -> str:
    """What is the same for all spellings of a place: the file or folder that a path leads to, or a Hub id."""
    path = expanded(place)
    return str(path.resolve()) if path.exists() else os.path.normpath(place)


def check_once(places: Iterable[tuple[str, str]]) -> None:
    """Raise ValueError if a place is given twice.

    Args:
        places: each with how it was given, such as ("--near birds=photos/", "photos/").
    """
    seen: dict[str, str] = {}
    for given, place in places:
        real = real_place(place)
        if real not in seen:
            seen[real] = given
        else:
            other = seen[real]
            what = f"{given} is given twice" if other == given else f"{other} and {given} are one place"
            raise ValueError(f"{what}: give it once")


def check_apart(output: Path, data: str) -> None:
    """Raise ValueError if what is written to `output` would lie among the images in the folder `data`.

    An address, such as s3://bucket/set, lies in no folder.
    """
    if ":/" in os.fspath(output) and not os.fspath(output).startswith("file:"):
        return
    folder, place = expanded(data).resolve(), expanded(output).resolve()
    if folder.is_dir() and place.is_relative_to(folder):
        raise ValueError(
            f"--output {output} is or lies in {data}, and would count as images of it the next time: choose a folder"
            " outside of it"
        )
