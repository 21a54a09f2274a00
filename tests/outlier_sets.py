"""Small outlier sets of plain shades."""

import json
from pathlib import Path

from PIL import Image

from sona_pipeline.common.files import png
from sona_pipeline.data.outlier_writer import OutlierWriter
from sona_pipeline.data.shards import Sample


def name_of(number: int) -> str:
    return f"{'sea%20lion' if number % 2 else 'cat'}/{number:016x}.png"


def sample(number: int, mark: str | None = None) -> Sample:
    """An outlier of shade `number` and a round trip one shade lighter; `mark` is its fingerprint."""
    row = {
        "file_name": name_of(number),
        "source_key": f"key {number}",
        "stop_step": number,
        "fingerprint": mark or f"{number:016x}",
    }
    outlier, other = (png(Image.new("L", (4, 4), shade)) for shade in (number, number + 1))
    return Sample(row, outlier, other)


def reject(number: int, reason: str = "contrast 0.01 < 0.1") -> dict:
    return {"file_name": name_of(number), "source_key": f"key {number}", "reason": reason}


def new_set(folder: Path, form: str) -> OutlierWriter:
    folder.mkdir(exist_ok=True)
    settings = {"ood_labels": ["bag"], "format": form, "reconstructions": True, "num_inference_steps": 50}
    (folder / "settings.json").write_text(json.dumps(settings))
    return OutlierWriter(folder, form)


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a set but the lock and what is noted of the run."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (".lock", "settings.json")
    }
