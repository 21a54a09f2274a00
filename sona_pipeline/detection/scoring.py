"""Job: what a detector says of image files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from sona_pipeline.common.files import png, write_bytes
from sona_pipeline.data.images import image_files
from sona_pipeline.data.imaging import upright
from sona_pipeline.detection.detector import Detection, Detector
from sona_pipeline.detection.gradcam import draw_cam, require_captum


def files_of(places: Iterable[Path]) -> list[Path]:
    """The image files among `places`, and those under the folders among them, sorted by name.

    Raises:
        FileNotFoundError: a place is not there, or a folder holds no images.
    """
    found: list[Path] = []
    for place in places:
        if not place.exists():
            raise FileNotFoundError(f"{place} does not exist: give image files, or folders of images")
        if not place.is_dir():
            found.append(place)
            continue
        images = sorted(place / name for name in image_files(place))
        if not images:
            raise FileNotFoundError(f"no images under {place}: give image files, or folders of images")
        found += images
    return found


def verdicts(
    detector: Detector, files: Iterable[Path], batch_size: int = 64, cam_folder: Path | None = None
) -> Iterator[tuple[Path, Detection | str]]:
    """Each file with what the detector says of it, or why it cannot be read; decoded batch by batch.

    Args:
        detector: without a threshold, there is no verdict in what it says.
        files: image files.
        batch_size: images at once.
        cam_folder: where a picture of each file is written that shows what the score looks at.
    """
    if cam_folder:
        require_captum()
    files = iter(files)
    while batch := list(islice(files, batch_size)):
        images, said = {}, {}
        for path in batch:
            try:
                images[path] = upright(path)
            except OSError as error:
                said[path] = str(error)
        said |= zip(images, detector(list(images.values()), batch_size=batch_size))
        if cam_folder:
            _draw_cams(detector, images, cam_folder)
        yield from ((path, said[path]) for path in batch)


def _draw_cams(detector: Detector, images: dict, folder: Path) -> None:
    for path, image in images.items():
        name = str(path).strip("/").replace("/", "-")
        write_bytes(folder / f"{name}.png", png(draw_cam(detector, image)))
