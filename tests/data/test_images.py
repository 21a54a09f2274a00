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


def test_paths_may_start_at_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    fill(tmp_path / "pictures", ["elk/1.png", "owl/2.png"])
    (tmp_path / "list.txt").write_text("owl/2.png 7\nelk/1.png 3\n")
    assert shades(open_images("~/pictures")) == [10, 20]
    listed = open_images("~/list.txt", image_root="~/pictures", class_list="~/list.txt")
    assert (listed.classes, shades(listed)) == (("elk", "owl"), [20, 10])


ARCHIVES = ["a.zip", "a.tgz", "a.tar.gz", "a.TAR.XZ", "a.7z", "a.rar", "a.tar.zst"]


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_are_to_be_unpacked(name, tmp_path):
    (tmp_path / name).write_bytes(b"PK\3\4")
    with pytest.raises(ValueError, match=rf"{name} is an archive: unpack it, and give the folder"):
        open_images(tmp_path / name)
    with pytest.raises(ValueError, match=r"no images under .*, only 1 file .* \(1 \.\w+\): unpack the archives"):
        open_images(tmp_path)


def parquet(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(columns).to_parquet(path)


def test_images_win_over_a_table_about_them(tmp_path, caplog):
    fill(tmp_path, ["elk/1.png", "owl/2.png"])
    parquet(tmp_path / "metadata.parquet", file_name=["elk/1.png", "owl/2.png"], label=[5, 6])
    (tmp_path / "metadata.csv").write_text("file_name,label\n")
    images = open_images(tmp_path)
    assert (images.keys, images.classes) == (("elk/1.png", "owl/2.png"), ("elk", "owl"))
    assert "passed over 2 files without the suffix of an image (1 .csv, 1 .parquet)" in caplog.text
    (tmp_path / "torn.parquet").write_bytes(b"PAR1")
    assert open_images(tmp_path).keys == images.keys


def test_images_in_tables_beside_images_in_files_are_refused(tmp_path):
    fill(tmp_path, ["elk/1.png"])
    parquet(tmp_path / "data" / "train.parquet", image=[picture(1)])
    with pytest.raises(ValueError, match=r"holds image files, and images in parquet files such as data/train\.parquet"):
        open_images(tmp_path)


def test_shards_are_told_from_what_systems_strew_about(tmp_path):
    datasets.Dataset.from_dict({"image": [picture(30)]}).to_parquet(tmp_path / "train.parquet")
    for name in ("._train.parquet", ".~lock.parquet", "@eaDir/train.parquet/SYNOPHOTO.jpg", "@eaDir/x.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"Mac OS X")
    assert shades(open_images(tmp_path)) == [30]


@pytest.mark.parametrize("name", ["./nowhere", "../nowhere", "nowhere/.cache"])
def test_missing_relative_path_is_no_hub_id(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"{name} does not exist"):
        open_images(name)
