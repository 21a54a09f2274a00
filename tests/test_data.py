import datasets
import numpy as np
import pytest
from PIL import Image

from sona_pipeline.data import fit, is_grey, open_images, split


def picture(shade: int, mode: str = "RGB", size: tuple[int, int] = (12, 8)) -> Image.Image:
    return Image.new("L", size, shade).convert(mode)


@pytest.fixture
def folder(tmp_path):
    for name, shade in {"b/x.png": 10, "b/y 1.jpg": 20, "ünï côde/z.webp": 30, ".hidden/no.png": 40}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture(shade).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


def test_folder_gives_classes_keys_and_labels(folder):
    images = open_images(folder)
    assert images.classes == ("b", "ünï côde")
    assert images.keys == ("b/x.png", "b/y 1.jpg", "ünï côde/z.webp")
    assert images.labels == (0, 0, 1)
    assert images.label_name(2) == "ünï côde"
    assert np.asarray(images.image(0))[0, 0].tolist() == [10, 10, 10]


def test_loose_images_are_unlabelled_and_may_not_be_mixed_with_classes(folder):
    loose = folder / "b"
    assert open_images(loose).labels == ()
    picture(0).save(folder / "loose.png")
    with pytest.raises(ValueError, match=r"mixes class sub-folders .* loose\.png"):
        open_images(folder)


def test_parquet_round_trip_with_class_names_and_keys(tmp_path):
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=["cat", "dog"]))
    table = datasets.Dataset.from_dict({"image": [picture(1), picture(2)], "label": [1, 0]}, features=features)
    table.to_parquet(tmp_path / "set.parquet")
    images = open_images(tmp_path / "set.parquet")
    assert images.classes == ("cat", "dog")
    assert images.labels == (1, 0)
    assert images.image(1).getpixel((0, 0)) == (2, 2, 2)
    assert open_images(tmp_path).keys == images.keys


def test_parquet_with_string_labels(tmp_path):
    features = datasets.Features(image=datasets.Image(), label=datasets.Value("string"), key=datasets.Value("string"))
    rows = {"image": [picture(1), picture(2)], "label": ["pear", "apple"], "key": ["one", "two"]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "set.parquet")
    images = open_images(tmp_path / "set.parquet")
    assert images.classes == ("apple", "pear")
    assert images.labels == (1, 0)
    assert images.keys == ("one", "two")


def test_missing_and_empty_sources_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        open_images(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no images under"):
        open_images(tmp_path)


def test_take_and_with_classes(folder):
    images = open_images(folder)
    assert images.take([2, 0]).keys == ("ünï côde/z.webp", "b/x.png")
    other = images.with_classes(["ünï côde", "b"])
    assert [other.label_name(i) for i in range(len(other))] == [images.label_name(i) for i in range(len(images))]
    assert other.labels == (1, 1, 0)
    with pytest.raises(ValueError, match="no class named"):
        images.with_classes(["b", "nope"])


def test_split_holds_out_a_share_of_every_class(tmp_path):
    for number in range(20):
        for name in "ab":
            (tmp_path / name).mkdir(exist_ok=True)
            picture(number).save(tmp_path / name / f"{number}.png")
    rest, held_out = split(open_images(tmp_path), 0.1, seed=0)
    assert sorted(held_out.labels) == [0, 0, 1, 1]
    assert sorted(rest.keys + held_out.keys) == sorted(open_images(tmp_path).keys)
    assert split(open_images(tmp_path), 0.1, seed=0)[1].keys == held_out.keys
    assert split(open_images(tmp_path), 0.1, seed=1)[1].keys != held_out.keys


def test_unreadable_image_names_the_file(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n but no more")
    with pytest.raises(OSError, match=r"broken\.png cannot be read as an image"):
        open_images(tmp_path).image(0)


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(9, size=(12, 8)).save(tmp_path / "turned.jpg", exif=exif)
    assert open_images(tmp_path).image(0).size == (8, 12)


def test_fit_crops_the_long_side_and_squashes_nothing():
    wide = Image.new("L", (40, 20), 0)
    wide.paste(255, (10, 0, 30, 20))
    assert np.asarray(fit(wide, 20, "L")).min() == 255


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
def test_fit_takes_every_mode(mode):
    if mode in ("I;16", "I", "F"):
        scale = 65535 if mode != "F" else 255
        values = np.full((8, 12), 0.5 * scale).astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode])
        image = Image.fromarray(values)
    else:
        image = picture(128, mode)
    fitted = np.asarray(fit(image, 8, "RGB"))
    assert fitted.shape == (8, 8, 3)
    assert abs(float(fitted.mean()) - 128) <= (2 if mode != "1" else 128)


def test_fit_lays_transparent_parts_on_white():
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    assert np.asarray(fit(image, 8)).min() == 255


def test_is_grey_looks_at_pixels_not_at_modes(tmp_path):
    picture(100, "RGB").save(tmp_path / "a.png")
    assert is_grey(open_images(tmp_path))
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "b.png")
    assert not is_grey(open_images(tmp_path))
