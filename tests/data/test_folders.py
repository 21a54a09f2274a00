import os
import shutil
import subprocess
import sys

import pytest
from pictures import fill, picture, shades
from PIL import Image

from sona_pipeline.data.folders import inner_folder
from sona_pipeline.data.images import open_images


def touch(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"Mac OS X")


# Splits


@pytest.mark.parametrize(
    ("folders", "split", "chosen"),
    [
        (["train", "test"], "train", "train"),
        (["train", "test"], "test", "test"),
        (["Train", "Val"], "validation", "Val"),
        (["training", "dev", "eval"], "train", "training"),
        (["training", "dev", "eval"], "dev", "dev"),
        (["training", "dev", "eval"], "test", "eval"),
        (["train2017", "val2017"], "val", "val2017"),
        (["train_clean", "train_noisy", "test"], "train_noisy", "train_noisy"),
        (["train"], "train", "train"),
        (["my-test"], "test", "my-test"),
    ],
)
def test_a_split_is_chosen(folders, split, chosen, tmp_path):
    fill(tmp_path, [f"{folder}/{name}/1.png" for folder in folders for name in ("elk", "owl")])
    (tmp_path / "README.md").write_text("")
    images = open_images(tmp_path, split=split)
    assert images.keys == open_images(tmp_path / chosen).keys == ("elk/1.png", "owl/1.png")
    assert (images.classes, images.labels) == (("elk", "owl"), (0, 1))
    assert shades(images) == [20 * folders.index(chosen) + 10, 20 * folders.index(chosen) + 20]


def test_splits_may_be_unlabelled(tmp_path):
    fill(tmp_path, ["train/elk/1.png", "train/owl/2.png", "test/1.png"])
    assert open_images(tmp_path).classes == ("elk", "owl")
    test = open_images(tmp_path, split="test")
    assert (test.keys, test.classes, shades(test)) == (("1.png",), (), [30])


@pytest.mark.parametrize("split", ["validation", "val", "no such", ""])
def test_a_split_that_is_not_there_is_refused(split, tmp_path):
    fill(tmp_path, ["train/elk/1.png", "test/elk/1.png"])
    with pytest.raises(ValueError, match=rf"has no split '{split}'; its splits are \['test', 'train'\]"):
        open_images(tmp_path, split=split)


def test_several_folders_for_a_split_are_refused(tmp_path):
    fill(tmp_path, ["val/elk/1.png", "valid/elk/1.png", "train/elk/1.png"])
    with pytest.raises(ValueError, match=r"several folders for the split 'validation', \['val', 'valid'\]: name one"):
        open_images(tmp_path, split="validation")


def test_splits_beside_other_folders_are_refused(tmp_path):
    fill(tmp_path, ["train/elk/1.png", "test/elk/1.png", "unlabelled/1.png"])
    with pytest.raises(ValueError, match=r"holds the splits \['test', 'train'\] beside \['unlabelled'\]"):
        open_images(tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        ["bus/1.png", "test/1.png"],
        ["bus/1.png", "test/1.png", "train/1.png"],
        ["bus/1/1.png", "train/electric/1.png", "train/steam/1.png"],
        ["bullet train/1.png", "freight train/1.png"],
        ["bullet train/1.png", "test tube/1.png"],
        ["train_station/platform/1.png", "test_site/1.png", "valley/1.png"],
        ["test/1.png"],
        ["train/electric/1.png", "training/shoes/1.png"],
    ],
)
def test_classes_may_be_called_like_splits(names, tmp_path):
    images = open_images(fill(tmp_path, names), split="validation")
    assert images.keys == tuple(sorted(names))
    assert images.classes == tuple(sorted({name.partition("/")[0] for name in names}))


def test_folders_without_images_are_no_splits(tmp_path):
    fill(tmp_path, ["train/elk/1.png", "test/elk/1.png"])
    touch(tmp_path, ["annotations/elk.xml", "__MACOSX/._x.png"])
    assert open_images(tmp_path, split="test").keys == ("elk/1.png",)


# Wrappers


@pytest.mark.parametrize("around", ["PetImages", "archive/PetImages", "data/train", "train/data"])
def test_a_folder_around_everything_is_no_class(around, tmp_path, caplog):
    fill(tmp_path / around, ["Cat/1.png", "Dog/2.png"])
    touch(tmp_path, ["readme.txt", "__MACOSX/PetImages/._1.png", "PetImages/.DS_Store"])
    images = open_images(tmp_path)
    assert (images.keys, images.classes) == (("Cat/1.png", "Dog/2.png"), ("Cat", "Dog"))
    assert shades(images) == [10, 20]
    assert "is taken for the image folder" in caplog.text
    if "train" in around:
        with pytest.raises(ValueError, match=r"no split 'test'; its splits are \['train'\]"):
            open_images(tmp_path, split="test")


def test_splits_may_be_wrapped(tmp_path):
    fill(tmp_path / "set", ["train/elk/1.png", "train/owl/1.png", "test/elk/1.png"])
    assert open_images(tmp_path).classes == ("elk", "owl")
    assert inner_folder(tmp_path, "test") == tmp_path / "set" / "test"


@pytest.mark.parametrize("names", [["elk/1.png"], ["elk/1.png", "elk/calf/2.png"], ["elk/2024/1.png"]])
def test_one_class_stays_a_class(names, tmp_path):
    images = open_images(fill(tmp_path, names))
    assert (images.keys, images.classes) == (tuple(names), ("elk",))


def test_an_empty_class_beside_another_keeps_both(tmp_path):
    fill(tmp_path, ["elk/1.png"])
    (tmp_path / "owl").mkdir()
    assert open_images(tmp_path).classes == ("elk", "owl")


# What may not be listed


ASK = """
import sys
from sona_pipeline import open_images
try:
    print(open_images(sys.argv[1]).keys)
except Exception as error:
    print(type(error).__name__, error)
"""


def told_without_privileges(place):
    """What `open_images` says to an account that permissions bind, which those of root do not."""
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if os.geteuid() == 0 else []
    if drop and not shutil.which("setpriv"):
        pytest.skip("root has no way to give up its privileges here")
    done = subprocess.run([*drop, sys.executable, "-c", ASK, place], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.parametrize("mode", [0o000, 0o333, 0o444])
@pytest.mark.parametrize("place", ["owl", "elk/deep", "."])
def test_a_folder_that_may_not_be_listed_is_an_error(mode, place, tmp_path):
    root = fill(tmp_path / "set", ["elk/1.png", "owl/1.png", "elk/deep/1.png"])
    (root / place).chmod(mode)
    try:
        told = told_without_privileges(root)
    finally:
        (root / place).chmod(0o755)
    assert told == (
        f"PermissionError the folder {root / place} cannot be listed (Permission denied): allow it, or move it out of"
        " the images\n"
    )


# Links


def test_links_are_followed(tmp_path):
    fill(tmp_path / "elsewhere", ["x.png", "y.png"])
    fill(tmp_path / "others", ["z.png"])
    fill(tmp_path / "set", ["b/z.png"])
    (tmp_path / "set" / "a").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set" / "b" / "link.png").symlink_to(tmp_path / "others" / "z.png")
    images = open_images(tmp_path / "set")
    assert images.keys == ("a/x.png", "a/y.png", "b/link.png", "b/z.png")
    assert images.labels == (0, 0, 1, 1)
    assert shades(images) == [10, 20, 10, 10]


def link(place, target):
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(target)


@pytest.mark.parametrize(
    ("place", "target"),
    [
        ("a/again.png", "1.png"),
        ("a/again.png", "../b/1.png"),
        ("a/0", "."),
        ("a/0", ".."),
        ("a/0", "../.."),
        ("a/0", "../b"),
        ("0", "a"),
        ("0", "."),
        ("c", "a/../b"),
    ],
)
def test_what_is_reached_twice_counts_once_where_it_lies(place, target, tmp_path, caplog):
    root = fill(tmp_path / "sets" / "set", ["a/1.png", "b/1.png"])
    fill(tmp_path / "sets" / "other", ["1.png"])
    link(root / place, target)
    images = open_images(root)
    assert (images.keys, images.classes) == (("a/1.png", "b/1.png"), ("a", "b"))
    assert f"passed over a link to what counts already: {place}" in caplog.text


def test_links_between_siblings_end(tmp_path, caplog):
    root = fill(tmp_path / "set", ["a/1.png", "b/1.png"])
    link(root / "a" / "b", "../b")
    link(root / "b" / "a", "../a")
    link(root / "b" / "loop", "loop2/x")
    (root / "b" / "loop").unlink()
    assert open_images(root).keys == ("a/1.png", "b/1.png")
    assert "passed over 2 links to what counts already, such as a/b" in caplog.text


def test_what_only_links_reach_counts_once(tmp_path):
    pool = fill(tmp_path / "pool", ["in/1.png", "2.png"])
    link(pool / "back", "../set")
    link(pool / "in" / "up", "..")
    root = fill(tmp_path / "set", ["c/3.png"])
    for name in ("a", "b"):
        link(root / name, "../pool")
    link(root / "c" / "2.png", "../../pool/2.png")
    for name in ("x.png", "y.png"):
        link(root / "d" / name, "../../lone.png")
    picture(7).save(tmp_path / "lone.png")
    images = open_images(root)
    assert images.keys == ("a/2.png", "a/in/1.png", "c/3.png", "d/x.png")
    assert images.classes == ("a", "c", "d")


def test_a_link_to_a_file_that_is_no_image_by_its_own_name_is_one(tmp_path):
    blobs = fill(tmp_path / "blobs", ["1.png"])
    (blobs / "1.png").rename(blobs / "3f9a")
    link(tmp_path / "elk" / "1.png", "../blobs/3f9a")
    assert open_images(tmp_path).keys == ("elk/1.png",)


def test_links_that_lead_nowhere(tmp_path):
    fill(tmp_path, ["elk/1.png"])
    link(tmp_path / "elk" / "2.png", "gone.png")
    assert open_images(tmp_path).keys == ("elk/1.png", "elk/2.png")  # missed when it is read
    link(tmp_path / "owl", "/no such disk/owl")
    with pytest.raises(FileNotFoundError, match=r"owl is a link to /no such disk/owl, which cannot be reached"):
        open_images(tmp_path)
    (tmp_path / "owl").unlink()
    link(tmp_path / "owl", "owl")
    with pytest.raises(OSError, match=r"owl is a link to owl, which cannot be reached"):
        open_images(tmp_path)


# What is passed over


def test_what_systems_strew_about_is_passed_over_without_a_word(tmp_path, caplog):
    fill(tmp_path, ["elk/1.png", ".hidden/1.png", "elk/.1.png", "elk/.x/1.png"])
    touch(tmp_path, ["elk/._1.png", "._elk/1.png", "elk/Thumbs.db", ".DS_Store", "__MACOSX/elk/1.png"])
    touch(
        tmp_path, ["elk/@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg", "@Recycle/1.png", "#recycle/1.png", "$RECYCLE.BIN/1.png"]
    )
    touch(tmp_path, ["elk/.ipynb_checkpoints/1-checkpoint.png", "lost+found/1.png", "System Volume Information/1.png"])
    images = open_images(tmp_path)
    assert (images.keys, images.classes) == (("elk/1.png",), ("elk",))
    assert not caplog.records


def test_other_files_are_counted_by_suffix(tmp_path, caplog):
    fill(tmp_path, ["elk/1.png", "owl/1.JPG"])
    touch(tmp_path, ["elk/2.HEIC", "elk/3.heic", "owl/2.svg", "owl/no suffix", "owl/3.jpg.txt"])
    open_images(tmp_path)
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: passed over 5 files without the suffix of an image (2 .heic, 1 without, 1 .svg, 1 .txt)"
    ]


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ([], "expected files such as .*/<class>/<name>.png"),
        (["elk/1.heic", "elk/2.HEIC"], r"only 2 files without .* \(2 \.heic\): convert images to PNG or JPEG"),
        (["elk/1"], r"only 1 file without .* \(1 without\): .* a suffix"),
        (["elk.zip", "labels.csv"], r"2 files without .* \(.*\.zip.*\): unpack"),
    ],
)
def test_a_folder_without_images_says_what_it_holds(files, told, tmp_path):
    touch(tmp_path, files)
    with pytest.raises(ValueError, match=f"no images under {tmp_path}.*{told}"):
        open_images(tmp_path)


def test_a_suffix_that_a_plugin_registers_is_an_image(tmp_path, monkeypatch):
    fill(tmp_path, ["elk/1.png"])
    (tmp_path / "elk" / "1.png").rename(tmp_path / "elk" / "1.heif2")
    monkeypatch.setitem(Image.EXTENSION, ".heif2", "PNG")
    assert shades(open_images(tmp_path)) == [10]


# Names of classes


@pytest.mark.parametrize("other", ["Cafe\u0301", "Caf\u00e9 ", " Caf\u00e9"])
def test_two_spellings_of_a_class_are_refused(other, tmp_path):
    fill(tmp_path, ["Caf\u00e9/1.png", f"{other}/1.png"])
    with pytest.raises(ValueError, match=r"two spellings of the class 'Caf.*', '.*' and '.*', which differ in spaces"):
        open_images(tmp_path)


def test_capitals_tell_classes_apart(tmp_path):
    assert open_images(fill(tmp_path, ["a/1.png", "A/1.png"])).classes == ("A", "a")
