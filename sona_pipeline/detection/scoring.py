"""Job: what a detector says of image files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path

from PIL import Image
from rich.markup import escape
from rich.table import Column, Table

from sona_pipeline.common.files import png, write_bytes
from sona_pipeline.common.names import expanded, safe_name, unique_names
from sona_pipeline.common.places import check_once
from sona_pipeline.data.imaging import upright
from sona_pipeline.data.walk import Walk, check_no_archive
from sona_pipeline.detection.detector import Detection, Detector
from sona_pipeline.detection.gradcam import draw_cam, require_captum

Verdict = tuple[Path, Detection | str]
"""An image file, and what the detector says of it or why it cannot be read."""


def files_of(places: Iterable[Path]) -> list[Path]:
    """The image files among `places`, and those under the folders among them, sorted by name; each once.

    Raises:
        FileNotFoundError: a place is not there, or a folder holds no images.
        PermissionError: a folder may not be listed.
        ValueError: a place is given twice, or is an archive.
    """
    places = list(places)
    check_once((str(place), str(place)) for place in places if not os.path.islink(place))
    found: list[Path] = []
    for place in map(expanded, places):
        if not place.exists():
            raise FileNotFoundError(f"{place} does not exist: give image files, or folders of images")
        if not place.is_dir():
            check_no_archive(place)
        found += _files_in(place) if place.is_dir() else [place]
    return list(dict.fromkeys(found))


def _files_in(folder: Path) -> list[Path]:
    walk = Walk(folder)
    images = sorted(folder / name for name in walk)
    if not images:
        raise FileNotFoundError(walk.nothing_found())
    walk.report()
    return images


def verdicts(
    detector: Detector, files: Iterable[Path], batch_size: int = 64, cam_folder: Path | None = None
) -> Iterator[Verdict]:
    """Each file with what the detector says of it, or why it cannot be read; decoded batch by batch.

    Args:
        detector: without a threshold, there is no verdict in what it says.
        files: image files.
        batch_size: images at once.
        cam_folder: where a picture of each file is written that shows what the score looks at.
    """
    if cam_folder:
        require_captum()
        files = list(files)
        cams = unique_names(map(str, files), lambda path: safe_name(path.strip("/").replace("/", "-")))
    files = iter(files)
    while batch := list(islice(files, batch_size)):
        images: dict[Path, Image.Image] = {}
        said: dict[Path, Detection | str] = {}
        for path in batch:
            try:
                images[path] = upright(path)
            except OSError as error:
                said[path] = str(error)
        said |= zip(images, detector(list(images.values()), batch_size=batch_size))
        if cam_folder:
            for path, image in images.items():
                write_bytes(expanded(cam_folder) / f"{cams[str(path)]}.png", png(draw_cam(detector, image)))
        yield from ((path, said[path]) for path in batch)


def check_some_read(found: Sequence[Verdict]) -> None:
    """Raise ValueError if none of the images could be read."""
    if all(isinstance(said, str) for _, said in found):
        raise ValueError(f"none of the {len(found)} images can be read; the first: {found[0][1]}")


def as_row(verdict: Verdict) -> dict:
    """A verdict as a row for JSON lines, with the reason under "error" for a file that cannot be read."""
    path, said = verdict
    return {"image": _printable(path), **({"error": said} if isinstance(said, str) else asdict(said))}


def table_of(found: Iterable[Verdict], score: str) -> Table:
    """Verdicts as a table for the console; `score` is what the detector's own is called."""
    table = Table(*(Column(name, overflow="fold") for name in ("image", "label", "confidence", score, "verdict")))
    for path, said in found:
        name = escape(_printable(path))
        if isinstance(said, str):
            table.add_row(name, "", "", "", f"[red]{escape(said)}[/]")
        else:
            word = {True: "[yellow]OOD[/]", False: "ID", None: "no threshold"}[said.is_ood]
            table.add_row(name, escape(said.label), f"{said.confidence:.3f}", f"{said.score:.3f}", word)
    return table


def _printable(path: Path) -> str:
    """A path without the bytes of a file name that are no text."""
    return str(path).encode("utf-8", "backslashreplace").decode()
