"""Plain grey pictures that can be told apart, in files."""

from pathlib import Path

from PIL import Image

from sona_pipeline.data import sample
from sona_pipeline.data.image_set import ImageSet


def picture(shade: int, mode: str = "RGB", size: tuple[int, int] = (12, 8)) -> Image.Image:
    return Image.new("L", size, shade).convert(mode)


def fill(folder: Path, names: list[str]) -> Path:
    """Lossless pictures whose shades are 10, 20, ... in the order of the names."""
    for number, name in enumerate(names, start=1):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(10 * number).save(folder / name)
    return folder


def shades(images: ImageSet) -> list[int]:
    return [images.image(i).convert("L").getpixel((0, 0)) for i in range(len(images))]


def write_sample(folder: Path, count: int) -> None:
    """The first ID images of the bundled sample, in class folders."""
    images = sample.id_images("train")
    for k in range(count):
        path = folder / images.label_name(k) / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        images.image(k).save(path)
