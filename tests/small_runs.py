"""Folders and settings of runs of `sona fit` that take seconds."""

from pathlib import Path

import yaml
from PIL import Image

from sona_pipeline import sample

CLASSES = ("dress", "shirt", "sneaker", "trouser")


def write_photos(folder: Path, count: int = 12, classes: tuple[str, ...] = CLASSES) -> Path:
    """`count` images of each class of the bundled sample, a sub-folder each."""
    images = sample.id_images("train")
    for name in classes:
        some = images.with_classes([name])
        (folder / name).mkdir(parents=True)
        for i in range(count):
            some.image(i).save(folder / name / f"{i}.png")
    return folder


def write_unknown(folder: Path, count: int = 6) -> Path:
    """`count` coloured images of nothing."""
    folder.mkdir(parents=True)
    for i in range(count):
        Image.new("RGB", (40, 30), (40 * i % 256, 90, 255 - 20 * i)).save(folder / f"{i}.png")
    return folder


def write_settings(folder: Path) -> list[str]:
    """Options by which a run takes seconds, with the files that they name."""
    made = {"steps": 3, "device": "cpu", "dtype": "float32"}
    trained = {"epochs": 2, "batch-size": 8, "cpu": True, "min-strength": 0.0}
    for name, values in (("made", made), ("trained", trained)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(values))
    files = ["--generate-config", str(folder / "made.yaml"), "--train-config", str(folder / "trained.yaml")]
    return ["--model", "tiny", "--recipe", "small", *files]
