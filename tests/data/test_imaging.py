"""Decoding and fitting of single images, against pictures whose pixels are worked out by hand."""

import io
import struct
import warnings

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image, ImageCms
from torchvision.transforms import functional as peer

from sona_pipeline.data.imaging import decoded, fit, image_suffixes, plain, upright
from sona_pipeline.data.settings import RESIZE_MODES

SAND = (200, 100, 50)
SAND_GREY = round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)
EIGHT_SQUARE = (8, 8)


def noise(width: int = 33, height: int = 42) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def filled(value: float, dtype: str) -> Image.Image:
    """A picture of 12 x 8 pixels with the first of them black, so that a wrong black level would be seen."""
    values = np.full((8, 12), value, dtype)
    values[0, 0] = 0
    return Image.fromarray(values)


def sand(mode: str) -> Image.Image:
    image = Image.new("RGB", (12, 8), SAND)
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        return ImageCms.applyTransform(image, ImageCms.buildTransform(*profiles, "RGB", "LAB"))
    return image.convert("RGBA").convert(mode) if mode == "RGBa" else image.convert(mode)


# Modes


@pytest.mark.parametrize("resize_mode", ["crop", "squash"])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "P", "PA"])
def test_every_mode_with_colours_keeps_them(mode, resize_mode):
    image = sand(mode)
    assert image.mode == mode
    tolerance = 4 if mode.startswith("P") else 2  # the palette has steps of 51
    assert np.abs(np.median(fit(image, 8, "RGB", resize_mode), axis=(0, 1)) - SAND).max() <= tolerance
    assert abs(np.median(fit(image, 8, "L", resize_mode)) - SAND_GREY) <= tolerance


@pytest.mark.parametrize("mode", ["L", "LA", "I", "F"])
def test_every_mode_of_8_bit_greys_keeps_them(mode):
    image = sand("L").convert(mode)
    assert image.mode == mode
    assert (np.asarray(fit(image, 8, "RGB")) == SAND_GREY).all()
    assert (np.asarray(fit(image, 8, "L")) == SAND_GREY).all()


def test_grey_with_premultiplied_alpha_keeps_its_grey():
    assert (np.asarray(fit(sand("LA").convert("La"), 8)) == SAND_GREY).all()


def test_bilevel_becomes_black_and_white():
    image = Image.new("1", EIGHT_SQUARE, 0)
    image.paste(1, (0, 0, 3, 8))
    assert np.asarray(fit(image, 8, "L")).tolist() == [[255] * 3 + [0] * 5] * 8


@pytest.mark.parametrize(("dtype", "mode"), [("<u2", "I;16"), (">u2", "I;16B"), ("i4", "I"), ("f4", "F")])
@pytest.mark.parametrize(("stored", "shade"), [(65535, 255), (128 * 257, 128), (257, 1)])
def test_16_bit_greys_are_scaled_to_8(dtype, mode, stored, shade):
    image = filled(stored, dtype)
    assert image.mode == mode
    fitted = np.asarray(fit(image, 8, "RGB"))
    assert fitted.shape == (8, 8, 3)
    assert np.median(fitted) == shade


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L", "I;16N"])
def test_dark_16_bit_greys_stay_dark(mode):
    assert np.asarray(fit(Image.new(mode, (12, 8), 200), 8)).max() <= 1


def test_what_is_looked_at_has_8_bits_and_lies_on_white():
    half = Image.fromarray(np.full((2, 3), 32768, np.uint16))
    for image, expected in (
        (half, (128, 128, 128)),
        (Image.new("LA", (3, 2), (40, 0)), (255, 255, 255)),
        (Image.new("1", (3, 2), 1), (255, 255, 255)),
        (Image.new("CMYK", (3, 2), (0, 255, 255, 0)), (255, 0, 0)),
        (Image.new("RGB", (3, 2), (1, 2, 3)).convert("P", palette=Image.Palette.ADAPTIVE), (1, 2, 3)),
    ):
        shown = plain(image)
        assert (shown.mode, shown.size, shown.getpixel((1, 1))) == ("RGB", (3, 2), expected)


def test_16_bit_greys_survive_a_file(tmp_path):
    for name in ("a.png", "a.tif", "a.pgm"):
        filled(128 * 257, "u2").save(tmp_path / name)
        assert np.median(fit(upright(tmp_path / name), 8, "L")) == 128


def test_not_a_number_is_black_and_darkens_nothing_else():
    values = np.full((8, 8), 100, np.float32)
    values[2, 3] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted = np.asarray(fit(Image.fromarray(values), 8, "L"))
    assert fitted[2, 3] == 0
    assert np.delete(fitted.ravel(), 2 * 8 + 3).tolist() == [100] * 63


def test_numbers_out_of_range_are_clipped():
    values = np.array([[-5, 0, 255, 70000]], np.int32).repeat(4, axis=0)
    assert np.asarray(fit(Image.fromarray(values), 4, "L"))[0].tolist() == [0, 0, 1, 255]


# Transparency: black, half of which shines through, is 127 on white


@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "LA", "PA"])
def test_transparent_parts_are_laid_on_white(mode):
    image = Image.new("RGBA", EIGHT_SQUARE, (0, 0, 0, 0))
    image.paste((0, 0, 0, 128), (0, 0, 4, 8))
    image.paste((0, 0, 0, 255), (0, 0, 2, 8))
    if mode == "PA":  # its one entry is black
        alpha, image = image.getchannel("A"), Image.new("PA", EIGHT_SQUARE)
        image.putpalette([0, 0, 0])
        image.putalpha(alpha)
    image = image if mode in ("RGBA", "PA") else image.convert(mode)
    assert image.mode == mode
    for target in ("L", "RGB"):
        row = np.asarray(fit(image, 8, target).convert("L"))[5]
        assert row.tolist() == [0, 0, 127, 127, 255, 255, 255, 255]


@pytest.mark.parametrize(
    ("mode", "transparency", "expected"),
    [
        ("1", 0, [255, 255]),
        ("L", 0, [255, 255]),
        ("L", 255, [0, 255]),
        ("RGB", (0, 0, 0), [255, 255]),
        ("RGB", (255, 255, 255), [0, 255]),
        ("P", 0, [255, 255]),
        ("P", bytes([128, 255]), [127, 255]),
    ],
)
def test_transparent_colour_of_a_png_becomes_white(mode, transparency, expected, tmp_path):
    image = Image.new("L", EIGHT_SQUARE, 0)
    image.paste(255, (4, 0, 8, 8))
    if mode == "P":
        image = image.point(lambda value: value // 255)
        image.putpalette([0, 0, 0, 255, 255, 255])
    else:
        image = image.convert(mode)
    image.save(tmp_path / "a.png", transparency=transparency)
    assert np.asarray(fit(upright(tmp_path / "a.png"), 8, "L"))[1, ::4].tolist() == expected


# Geometry


def striped(size: tuple[int, int]) -> Image.Image:
    """Columns and rows all different: red tells the column, green the row."""
    columns, rows = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    return Image.fromarray(np.stack([4 * columns, 4 * rows, 0 * rows], axis=-1).astype(np.uint8))


def test_crop_takes_the_centre_and_squashes_nothing():
    wide, tall = striped((48, 16)), striped((16, 48))
    assert (np.asarray(fit(wide, 16)) == np.asarray(wide)[:, 16:32]).all()
    assert (np.asarray(fit(tall, 16)) == np.asarray(tall)[16:32]).all()


@pytest.mark.parametrize("size", [(64, 32), (32, 64), (48, 48), (10, 8), (60, 24)])
@pytest.mark.parametrize("side", [8, 16])
def test_crop_agrees_with_torchvision(size, side):
    image = noise(*size)
    short = peer.resize(image, side, peer.InterpolationMode.LANCZOS)
    expected = np.asarray(peer.center_crop(short, side), float)
    inner = slice(3, -3)  # the peer filters before it crops and so sees beyond the edges
    assert np.abs(np.asarray(fit(image, side), float) - expected)[inner, inner].max() <= 8  # the order of the passes


def test_pad_keeps_everything_and_fills_with_black():
    wide = Image.new("RGB", (40, 20), "white")
    wide.paste("red", (0, 0, 8, 8))
    wide.paste("blue", (32, 12, 40, 20))
    fitted = np.asarray(fit(wide, 20, resize_mode="pad"))
    assert (fitted[:5] == 0).all()
    assert (fitted[15:] == 0).all()
    for row, column, colour in ((6, 1, (255, 0, 0)), (13, 18, (0, 0, 255)), (9, 10, (255, 255, 255))):
        assert np.abs(fitted[row, column].astype(int) - colour).max() <= 5  # but for ringing
    tall = np.asarray(fit(wide.transpose(Image.Transpose.TRANSPOSE), 20, resize_mode="pad"))
    assert np.abs(tall.astype(int) - fitted.transpose(1, 0, 2)).max() <= 5


def test_squash_is_a_plain_resize():
    image = noise(40, 20)
    expected = image.resize((16, 16), Image.Resampling.LANCZOS)
    assert (np.asarray(fit(image, 16, resize_mode="squash")) == np.asarray(expected)).all()


@pytest.mark.parametrize("resize_mode", RESIZE_MODES)
def test_picture_of_the_right_size_is_left_alone_and_every_other_gets_it(resize_mode):
    image = noise(16, 16)
    assert (np.asarray(fit(image, 16, resize_mode=resize_mode)) == np.asarray(image)).all()
    for size in ((1, 1), (1, 40), (40, 1), (3, 5), (17, 16)):
        for mode in ("RGB", "L"):
            fitted = fit(noise(*size), 16, mode, resize_mode)
            assert (fitted.size, fitted.mode) == ((16, 16), mode)


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(["crop", "squash"]))
def test_plain_colour_stays_plain(width, height, resize_mode):
    fitted = fit(Image.new("RGB", (width, height), SAND), 8, resize_mode=resize_mode)
    assert fitted.getcolors() == [(64, SAND)]


def test_wrong_resize_mode_is_refused_even_where_nothing_is_to_resize():
    with pytest.raises(ValueError, match=r"'stretch', but has to be one of .*crop.*pad.*squash"):
        fit(noise(8, 8), 8, resize_mode="stretch")


# Decoding


TURNS = {
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
    8: lambda x: np.rot90(x),
}


@pytest.mark.parametrize("orientation", TURNS)
def test_exif_orientation_is_applied_once(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    noise(5, 3).save(tmp_path / "turned.png", exif=exif)
    image = upright(tmp_path / "turned.png")
    assert np.array_equal(np.asarray(image), TURNS[orientation](np.asarray(noise(5, 3))))
    image.save(tmp_path / "again.png", exif=image.getexif())
    assert np.array_equal(np.asarray(upright(tmp_path / "again.png")), np.asarray(image))


def test_jpeg_of_a_phone_is_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(12, 8).save(tmp_path / "turned.jpg", exif=exif)
    assert upright(str(tmp_path / "turned.jpg")).size == (8, 12)


def exif_block(*entries: tuple[int, int, bytes], magic: int = 42, start: int = 8) -> bytes:
    """An EXIF block with tags, each with a type and four bytes of value."""
    tags = b"".join(struct.pack("<HHI", tag, kind, 2 if kind == 8 else 1) + value for tag, kind, value in entries)
    return b"Exif\0\0II" + struct.pack("<HIH", magic, start, len(entries)) + tags + bytes(4)


TURN, FAR = (0x0112, 3, b"\6\0\0\0"), b"\xff\xff\1\0"
NOTHING_SAID = [
    b"Exif\0\0no EXIF block",
    exif_block(TURN, magic=99),
    exif_block(TURN, start=70000),
    exif_block(TURN)[:20],
    exif_block((0x0112, 2, b"6\0\0\0")),
    exif_block((0x0112, 3, b"\x63\0\0\0")),
]
TURNED_AND_BROKEN = [
    exif_block(TURN, (0x8769, 4, FAR)),
    exif_block(TURN, (0xA005, 2, b"abcd")),
    exif_block((0x0100, 9, b"\xff\xff\xff\xff"), TURN),
    exif_block((0x0102, 8, b"\xff\xff\xff\xff"), TURN),
    exif_block((0x010F, 2, FAR), TURN),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("block", [*NOTHING_SAID, *TURNED_AND_BROKEN])
def test_broken_exif_block_does_not_make_an_image_unreadable(block, form, tmp_path):
    options = {"lossless": True} if form == "WEBP" else {}
    noise(5, 3).save(tmp_path / "a", form, exif=block, **options)
    image, stored = upright(tmp_path / "a"), np.asarray(Image.open(tmp_path / "a").convert("RGB"))
    assert np.array_equal(np.asarray(image), np.rot90(stored, -1) if block in TURNED_AND_BROKEN else stored)
    assert fit(image, 4).size == (4, 4)


def test_broken_exif_block_of_a_tiff(tmp_path):
    content = bytearray(encoded(noise(5, 3), "TIFF"))
    (start,) = struct.unpack("<I", content[4:8])
    (count,) = struct.unpack("<H", content[start : start + 2])
    interoperability = struct.pack("<HHI", 0xA005, 2, 4) + b"abcd"
    tags = [content[start + 2 + 12 * i : start + 14 + 12 * i] for i in range(count)]
    content[4:8] = struct.pack("<I", len(content))
    (tmp_path / "a.tif").write_bytes(
        content + struct.pack("<H", count + 1) + b"".join([*tags, interoperability]) + bytes(4)
    )
    assert np.array_equal(np.asarray(upright(tmp_path / "a.tif")), np.asarray(noise(5, 3)))


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=200)
@given(st.sampled_from(["PNG", "JPEG", "WEBP"]), st.sampled_from([0, 1, 2]), st.binary(max_size=80))
def test_no_exif_block_makes_an_image_unreadable(form, kind, block):
    whole = (block, b"Exif\0\0" + block, exif_block(TURN)[:22] + block)[kind]
    content = encoded(noise(5, 3), form, exif=whole)
    assert sorted(decoded(lambda: Image.open(io.BytesIO(content)), "it").size) == [3, 5]


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_stands_for_a_film(form, tmp_path):
    frames = [Image.new("RGB", EIGHT_SQUARE, colour) for colour in ("red", "blue")]
    lossless = {"lossless": True} if form == "WEBP" else {}
    path = tmp_path / f"film.{form.lower()}"
    frames[0].save(path, form, save_all=True, append_images=frames[1:], **lossless)
    assert fit(upright(path), 4).getcolors() == [(16, (255, 0, 0))]


def test_image_outlives_its_file(tmp_path):
    noise().save(tmp_path / "a.bmp")
    image = upright(tmp_path / "a.bmp")
    (tmp_path / "a.bmp").unlink()
    assert np.array_equal(np.asarray(image), np.asarray(noise()))


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_truncated_file_is_named(form, tmp_path):
    content = encoded(noise(), form)
    path = tmp_path / f"short.{form.lower()}"
    for length in (0, 4, len(content) // 2):
        path.write_bytes(content[:length])
        with pytest.raises(OSError, match=rf"short\.{form.lower()} cannot be read as an image: "):
            upright(path)


def test_broken_missing_and_other_files_are_named(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n but no more")
    (tmp_path / "notes.png").write_text("not an image")
    (tmp_path / "folder.png").mkdir()
    for name in ("broken.png", "notes.png", "folder.png"):
        with pytest.raises(OSError, match=rf"{name} cannot be read as an image: "):
            upright(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"missing\.png cannot be read: it does not exist"):
        upright(tmp_path / "missing.png")
    with pytest.raises(OSError, match=r"row 3 cannot be read as an image: there is no image"):
        decoded(lambda: None, "row 3")


def test_decompression_bomb_is_refused(tmp_path, monkeypatch):
    noise(12, 8).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(OSError, match=r"bomb\.png cannot be read as an image: .* decompression bomb"):
        upright(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)
    with pytest.warns(Image.DecompressionBombWarning):
        assert upright(tmp_path / "bomb.png").size == (12, 8)


FILES = {form: encoded(noise(9, 12), form) for form in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA")}


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=300)
@given(st.sampled_from(list(FILES)), st.lists(st.tuples(st.integers(0, 150), st.integers(0, 255)), max_size=4))
def test_damaged_file_is_decoded_or_refused_as_unreadable(form, changes):
    content = bytearray(FILES[form])
    for place, value in changes:
        content[place % len(content)] = value
    try:
        assert min(decoded(lambda: Image.open(io.BytesIO(content)), "it").size) >= 1
    except OSError as error:
        assert str(error).startswith("it cannot be read as an image: ")


def test_file_that_pillow_has_no_decoder_for_is_named(tmp_path):
    content = bytearray(encoded(noise(), "DDS"))
    content[80:84] = bytes(4)  # the flags of the pixel format
    (tmp_path / "odd.dds").write_bytes(content)
    with pytest.raises(OSError, match=r"odd\.dds cannot be read as an image: "):
        upright(tmp_path / "odd.dds")


# Suffixes


def test_suffixes_are_those_of_pictures():
    suffixes = image_suffixes()
    assert suffixes >= {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm"}
    assert not suffixes & {".eps", ".ps", ".h5", ".hdf", ".mpg", ".mpeg", ".grib", ".wmf", ".emf", ".pdf", ".txt", ""}
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in suffixes)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".bmp", ".gif", ".ppm", ".tga", ".pcx", ".jp2"])
def test_what_pillow_writes_under_a_suffix_can_be_read(suffix, tmp_path):
    assert suffix in image_suffixes()
    Image.new("RGB", (12, 8), SAND).save(tmp_path / f"a{suffix}")
    fitted = np.asarray(fit(upright(tmp_path / f"a{suffix}"), 8), int)
    assert np.abs(fitted - SAND).max() <= (3 if suffix == ".jpg" else 5 if suffix == ".webp" else 0)
