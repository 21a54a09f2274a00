"""Far-OOD images of many kinds, for choices: drawn with a fixed seed from what packages ship.

    python examples/benchmarks/cifar10/far_kinds.py --sheet far-kinds.png

It takes matplotlib and scikit-image. Half of the kinds are drawn (text, symbols, gradients, noise), half are cut from
pictures that these packages ship (medical, microscope, sky and terrain, faces): few pictures, so that their crops are
much alike. None shows digits, which a test set is of; tissue, terrain and noise have something of its textures.
"""

from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from cyclopts import App
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from sona_pipeline import ImageSet

SIDE, COUNT, SEED = 32, 500, 0
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
SYMBOLS = [
    chr(code)
    for first, last in ((0x2190, 0x21FF), (0x2600, 0x2704), (0x2706, 0x2776), (0x2794, 0x27BF))
    for code in range(first, last)
]
"""Arrows, miscellaneous symbols and dingbats, without digits."""
SMALLEST_CROP, PLAINEST = 48, 8.0
"""Pixels of a crop's side, and the standard deviation of its grey levels, at least."""

app = App(help="Far-OOD images of many kinds, for choices.", version_flags=())
Draw = Callable[[np.random.Generator], Image.Image]


def far_kinds() -> dict[str, ImageSet]:
    """Far-OOD images by kind, `COUNT` of each, 32 px, RGB; opening one takes matplotlib and scikit-image."""
    return {
        name: _drawn(draw, np.random.default_rng([SEED, index])) for index, (name, draw) in enumerate(KINDS.items())
    }


def _drawn(draw: Draw, rng: np.random.Generator) -> ImageSet:
    """Images that are drawn, all of them, when the first one is asked for."""
    pictures = cache(lambda: [draw(rng) for _ in range(COUNT)])
    return ImageSet(tuple(f"{i:05d}" for i in range(COUNT)), (), (), lambda index: pictures()[index])


def text(rng: np.random.Generator) -> Image.Image:
    """A few letters in one of matplotlib's fonts."""
    letters = "".join(rng.choice(list(LETTERS), rng.integers(1, 5)))
    return _lettered(letters, rng.choice(_fonts()), rng)


def symbols(rng: np.random.Generator) -> Image.Image:
    """A symbol that DejaVu Sans has."""
    return _lettered(rng.choice(_known_symbols()), _font_file("DejaVuSans"), rng)


def gradients(rng: np.random.Generator) -> Image.Image:
    """Two colours, one passing into the other along a line, around a point, or back and forth in waves."""
    y, x = np.mgrid[0 : 1 : SIDE * 1j, 0 : 1 : SIDE * 1j]
    angle, centre = rng.uniform(0, 2 * np.pi), rng.uniform(0, 1, 2)
    along = x * np.cos(angle) + y * np.sin(angle)
    around = np.hypot(x - centre[0], y - centre[1])
    way = (along, around)[rng.integers(2)]
    way = (way - way.min()) / np.ptp(way)
    if rng.integers(2):
        way = 0.5 + 0.5 * np.sin(2 * np.pi * rng.uniform(1, 6) * way)
    one, other = rng.uniform(0, 255, (2, 3))
    return _picture(one + (other - one) * way[..., None])


def noise(rng: np.random.Generator) -> Image.Image:
    """Gaussian noise, smoothed or not, grey or coloured, of any contrast."""
    channels = rng.choice([1, 3])
    pixels = ndimage.gaussian_filter(
        rng.normal(size=(SIDE, SIDE, channels)), (rng.choice([0, 0.7, 1.5, 4]),) * 2 + (0,)
    )
    pixels = rng.uniform(60, 195, channels) + rng.uniform(15, 90) * pixels / pixels.std()
    return _picture(np.broadcast_to(pixels, (SIDE, SIDE, 3)))


def medical(rng: np.random.Generator) -> Image.Image:
    """A piece of a retina, of vessels in one, or of a slice through a head."""
    return _crop([_shipped("retina.jpg"), _shipped("microaneurysms.png"), _head()], rng)


def microscope(rng: np.random.Generator) -> Image.Image:
    """A piece of stained tissue, or of a cell."""
    return _crop([_shipped("ihc.png"), _shipped("cell.png")], rng)


def sky_and_terrain(rng: np.random.Generator) -> Image.Image:
    """A piece of the moon, of a field of galaxies, or of a map of heights in shaded relief."""
    return _crop([_shipped("moon.png"), _shipped("hubble_deep_field.jpg"), _relief()], rng)


def faces(rng: np.random.Generator) -> Image.Image:
    """One of a hundred grey faces of 25 px, mirrored or not, and shifted."""
    faces = np.load(_folder("skimage") / "data" / "lfw_subset.npy")[:100]
    face = Image.fromarray((255 * faces[rng.integers(100)]).astype(np.uint8)).resize(
        (SIDE + 4,) * 2, Image.Resampling.BICUBIC
    )
    face = face.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.integers(2) else face
    left, top = rng.integers(0, 5, 2)
    return face.crop((left, top, left + SIDE, top + SIDE)).convert("RGB")


KINDS: dict[str, Draw] = {
    "text": text,
    "symbols": symbols,
    "gradients": gradients,
    "noise": noise,
    "medical": medical,
    "microscope": microscope,
    "sky and terrain": sky_and_terrain,
    "faces": faces,
}


def _picture(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))


def _lettered(letters: str, font: Path, rng: np.random.Generator) -> Image.Image:
    """Letters that fill most of an image, turned a little; drawn at four times its size."""
    paper, ink = rng.uniform(0, 255, (2, 3))
    while abs((paper - ink).mean()) < 60:
        paper, ink = rng.uniform(0, 255, (2, 3))
    large = Image.new("RGB", (4 * SIDE,) * 2, tuple(int(c) for c in paper))
    draw = ImageDraw.Draw(large)
    size = 100
    while max(draw.textbbox((0, 0), letters, ImageFont.truetype(str(font), size))[2:]) > 3.9 * SIDE:
        size -= 4
    middle = (2 * SIDE + int(rng.integers(-8, 9)), 2 * SIDE + int(rng.integers(-8, 9)))
    draw.text(middle, letters, tuple(int(c) for c in ink), ImageFont.truetype(str(font), size), anchor="mm")
    turned = large.rotate(rng.uniform(-20, 20), Image.Resampling.BICUBIC, fillcolor=tuple(int(c) for c in paper))
    return turned.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def _crop(pictures: Sequence[Image.Image], rng: np.random.Generator) -> Image.Image:
    """A square of one of the pictures that is not plain, turned by quarters, mirrored or not."""
    picture = pictures[rng.integers(len(pictures))]
    while True:
        side = int(rng.integers(SMALLEST_CROP, min(picture.size) // 2 + 1))
        left, top = int(rng.integers(picture.width - side + 1)), int(rng.integers(picture.height - side + 1))
        piece = picture.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        if np.asarray(piece.convert("L")).std() >= PLAINEST:
            break
    pixels = np.rot90(np.asarray(piece), rng.integers(4))
    return Image.fromarray(np.ascontiguousarray(pixels[:, ::-1] if rng.integers(2) else pixels))


def _folder(package: str) -> Path:
    spec = find_spec(package)
    if not spec or not spec.origin:
        raise ModuleNotFoundError(f"{package} is not here: pip install matplotlib scikit-image")
    return Path(spec.origin).parent


@cache
def _shipped(name: str) -> Image.Image:
    return Image.open(_folder("skimage") / "data" / name).convert("RGB")


@cache
def _head() -> Image.Image:
    """A slice through a head, by magnetic resonance."""
    from matplotlib.cbook import get_sample_data

    with get_sample_data("s1045.ima.gz") as file:
        slice_ = np.frombuffer(file.read(), np.uint16).reshape(256, 256).astype(float)
    return Image.fromarray((255 * slice_ / slice_.max()).astype(np.uint8)).convert("RGB")


@cache
def _relief() -> Image.Image:
    """A map of heights around a fault, lit from the north-west."""
    from matplotlib import colormaps
    from matplotlib.cbook import get_sample_data
    from matplotlib.colors import LightSource

    with get_sample_data("jacksboro_fault_dem.npz") as dem:
        shaded = LightSource(azdeg=315, altdeg=45).shade(dem["elevation"], colormaps["gist_earth"], vert_exag=0.2)
    return Image.fromarray((255 * shaded[..., :3]).astype(np.uint8))


def _font_file(name: str) -> Path:
    return _folder("matplotlib") / "mpl-data" / "fonts" / "ttf" / f"{name}.ttf"


@cache
def _fonts() -> list[Path]:
    names = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSerif", "DejaVuSerif-Bold")
    return [_font_file(name) for name in (*names, "STIXGeneral", "STIXGeneralBolIta", "cmr10", "cmtt10")]


@cache
def _known_symbols() -> list[str]:
    from fontTools.ttLib import TTFont

    known = TTFont(_font_file("DejaVuSans")).getBestCmap()
    return [symbol for symbol in SYMBOLS if ord(symbol) in known]


@app.default
def main(*, sheet: Path = Path("far-kinds.png"), columns: int = 24) -> None:
    """Draw the first images of every kind.

    Args:
        sheet: PNG file to draw.
        columns: Images of each kind.
    """
    kinds = far_kinds()
    page = Image.new("RGB", (columns * SIDE, len(kinds) * SIDE))
    for row, images in enumerate(kinds.values()):
        for column in range(columns):
            page.paste(images.image(column), (column * SIDE, row * SIDE))
    page.resize((2 * page.width, 2 * page.height), Image.Resampling.NEAREST).save(sheet)


if __name__ == "__main__":
    app()
