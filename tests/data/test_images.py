import os

import datasets
import numpy as np
import pytest
from pictures import fill, picture, shades
from torchvision.datasets import ImageFolder

from sona_pipeline.data.images import open_images

IMAGE, STRING, NUMBER = datasets.Image(), datasets.Value("string"), datasets.Value("int64")
ANIMALS = datasets.ClassLabel(names=["cat", "dog"])


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


def test_folder_agrees_with_torchvision(tmp_path):
    fill(tmp_path, ["b/2.png", "b/10.png", "B/é.png", "a b/deep/er/x.PNG", "a b/deep.png", "10/x.bmp", "9/x.tiff"])
    images, peer = open_images(str(tmp_path)), ImageFolder(tmp_path)
    assert images.classes == tuple(peer.classes)
    found = {
        (str(tmp_path / key), label): shade for key, label, shade in zip(images.keys, images.labels, shades(images))
    }
    assert found == {sample: peer[i][0].convert("L").getpixel((0, 0)) for i, sample in enumerate(peer.samples)}
    assert sorted(images.keys) == list(images.keys)


def test_hidden_files_and_folders_are_passed_over(tmp_path):
    fill(tmp_path, ["a/x.png", "a/.x.png", ".b/x.png", "a/.c/x.png"])
    assert open_images(tmp_path).keys == ("a/x.png",)


def test_symlinks_are_followed(tmp_path):
    fill(tmp_path / "elsewhere", ["x.png", "y.png"])
    fill(tmp_path / "set", ["b/z.png"])
    (tmp_path / "set" / "a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "b" / "link.png").symlink_to(tmp_path / "elsewhere" / "y.png")
    images = open_images(tmp_path / "set")
    assert images.keys == ("a/x.png", "a/y.png", "b/link.png", "b/z.png")
    assert images.labels == (0, 0, 1, 1)
    assert shades(images) == [10, 20, 20, 10]


def test_names_that_are_not_utf_8_give_keys_that_can_be_written(tmp_path):
    fill(tmp_path, ["a/x.png", "b/y.png"])
    try:
        os.rename(os.fsencode(tmp_path / "b"), os.path.join(os.fsencode(tmp_path), b"b\xe9"))
    except OSError:
        pytest.skip("the file system takes UTF-8 only")
    images = open_images(tmp_path)
    assert [name.encode() for name in images.classes] == [b"a", b"b\\udce9"]
    assert images.keys == ("a/x.png", f"{images.classes[1]}/y.png")
    assert shades(images) == [10, 20]


def test_loose_images_are_unlabelled_and_may_not_be_mixed_with_classes(folder):
    loose = folder / "b"
    assert open_images(loose).labels == ()
    assert open_images(loose).classes == ()
    picture(0).save(folder / "loose.png")
    with pytest.raises(ValueError, match=r"mixes class sub-folders .* loose\.png"):
        open_images(folder)


def test_unreadable_image_is_an_error_on_reading_only(tmp_path):
    fill(tmp_path, ["a/x.png"])
    (tmp_path / "a" / "broken.png").write_bytes(b"")
    images = open_images(tmp_path)
    assert len(images) == 2
    with pytest.raises(OSError, match=r"broken\.png cannot be read as an image"):
        images.image(0)
    assert shades(images.take([1])) == [10]


def test_missing_and_empty_sources_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist: give an image folder, .* or a Hub id"):
        open_images(tmp_path / "nowhere")
    for name in ("nowhere", "a/b/c", "two words/x", "list.txt"):
        with pytest.raises(FileNotFoundError, match=f"{name} does not exist"):
            open_images(name)
    with pytest.raises(ValueError, match="no images under"):
        open_images(tmp_path)


@pytest.mark.parametrize("name", ["./nowhere", "../nowhere", "nowhere/.cache"])
def test_missing_relative_path_is_no_hub_id(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"{name} does not exist"):
        open_images(name)
