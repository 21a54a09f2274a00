import hashlib
import json
import os
import subprocess
import sys

import datasets
import numpy as np
import pytest
from hypothesis import given, strategies as st
from loopback_hub import LoopbackHub
from PIL import Image
from torchvision.datasets import ImageFolder

from sona_pipeline.data.images import ImageSet, hold_out, is_grey, is_image_list, list_classes, open_images, open_list

IMAGE, STRING, NUMBER = datasets.Image(), datasets.Value("string"), datasets.Value("int64")
ANIMALS = datasets.ClassLabel(names=["cat", "dog"])


def picture(shade: int, mode: str = "RGB", size: tuple[int, int] = (12, 8)) -> Image.Image:
    return Image.new("L", size, shade).convert(mode)


def fill(folder, names):
    """Lossless pictures whose shades are 10, 20, ... in the order of the names."""
    for number, name in enumerate(names, start=1):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture(10 * number).save(folder / name)
    return folder


def shades(images: ImageSet) -> list[int]:
    return [images.image(i).convert("L").getpixel((0, 0)) for i in range(len(images))]


def table(kinds: dict, **columns) -> datasets.Dataset:
    return datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))


@pytest.fixture
def parquet(tmp_path):
    def write(kinds: dict, name: str = "set.parquet", **columns):
        table(kinds, **columns).to_parquet(tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def folder(tmp_path):
    for name, shade in {"b/x.png": 10, "b/y 1.jpg": 20, "ünï côde/z.webp": 30, ".hidden/no.png": 40}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture(shade).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


# Image folders


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


# Image lists of OpenOOD


def test_image_list_names_classes_after_folders(tmp_path):
    fill(tmp_path, ["t/dog/1.png", "t/cat/1.png", "t/dog/2.png"])
    (tmp_path / "list.txt").write_text("t/dog/1.png 0\nt/cat/1.png 1\n\n  t/dog/2.png   0 \n")
    images = open_images(tmp_path / "list.txt")
    assert images.keys == ("t/dog/1.png", "t/cat/1.png", "t/dog/2.png")
    assert images.classes == ("dog", "cat")
    assert images.labels == (0, 1, 0)
    assert shades(images) == [10, 20, 30]


def test_image_list_starts_from_the_image_root(tmp_path):
    fill(tmp_path / "pictures", ["dog/1.png", "ünï/1.png"])
    (tmp_path / "list.txt").write_text("ünï/1.png 1\ndog/1.png 0\n", encoding="utf-8")
    images = open_images(tmp_path / "list.txt", image_root=tmp_path / "pictures")
    assert images.classes == ("dog", "ünï")
    assert images.labels == (1, 0)
    assert shades(images) == [20, 10]
    with pytest.raises(OSError, match=r"ünï.1\.png cannot be read as an image"):
        open_images(tmp_path / "list.txt").image(0)


@pytest.mark.parametrize(
    ("lines", "classes"),
    [
        (["all/1.png 4", "all/2.png 11"], ("4", "11")),
        (["1.png 4", "2.png 11"], ("4", "11")),
        (["x/1.png 4", "y/2.png 4", "z/3.png 11"], ("4", "11")),
        (["cat/1.png 4", "2.png 11"], ("4", "11")),
        (["z/1.png 4", "y/2.png 11"], ("z", "y")),
        (["train/z/1.png 4", "test/z/2.png 4", "test/y/2.png 11"], ("z", "y")),
    ],
)
def test_image_list_closes_gaps_and_uses_numbers_where_folders_do_not_tell(lines, classes, tmp_path):
    (tmp_path / "list.txt").write_text("\n".join(reversed(lines)))
    images = open_images(tmp_path / "list.txt")
    assert images.classes == classes
    assert images.labels == tuple(int(line.endswith(" 11")) for line in reversed(lines))


def test_image_list_takes_the_classes_of_another_by_their_numbers(tmp_path):
    (tmp_path / "train.txt").write_text("owl/1.png 9\nelk/1.png 2\napes/1.png 4\n")
    (tmp_path / "test.txt").write_text("9/1.png 9\n2/1.png 2\n")
    names = list_classes(tmp_path / "train.txt")
    assert list(names.items()) == [(2, "elk"), (4, "apes"), (9, "owl")]
    images = open_list(tmp_path / "test.txt", tmp_path, names)
    assert images.classes == ("elk", "apes", "owl")
    assert images.labels == (2, 0)
    with pytest.raises(ValueError, match=r"train\.txt has labels \[4\], which are no classes"):
        open_list(tmp_path / "train.txt", tmp_path, {9: "owl", 2: "elk"})


def test_image_list_of_one_folder_takes_the_classes_of_the_training_list(tmp_path):
    (tmp_path / "train.txt").write_text("t/owl/1.png 9\nt/elk/1.png 2\n")
    (tmp_path / "val.txt").write_text("v/1.png 2\nv/2.png 9\nv/3.png 2\n")
    fill(tmp_path / "folder", ["elk/1.png"])
    images = open_images(tmp_path / "val.txt", class_list=tmp_path / "train.txt")
    assert (images.classes, images.labels) == (("elk", "owl"), (0, 1, 0))
    assert open_images(tmp_path / "val.txt").classes == ("2", "9")
    assert open_images(tmp_path / "folder", class_list=tmp_path / "train.txt").classes == ("elk",)
    assert is_image_list(tmp_path / "val.txt")
    assert not any(is_image_list(tmp_path / name) for name in ("folder", "folder/elk/1.png", "no such list.txt"))


def test_image_list_is_unlabelled_on_demand(tmp_path):
    (tmp_path / "list.txt").write_text("a/1.png -1\nb/1.png 3\n")
    images = open_list(tmp_path / "list.txt", tmp_path, {})
    assert (images.keys, images.labels, images.classes) == (("a/1.png", "b/1.png"), (), ())


def test_image_list_without_classes(tmp_path):
    fill(tmp_path, ["a/1.png", "b/2.png"])
    (tmp_path / "list.txt").write_text("b/2.png -1\na/1.png -1\n")
    images = open_images(tmp_path / "list.txt")
    assert (images.labels, images.classes) == ((), ())
    assert shades(images) == [20, 10]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a/1.png 0\na/2.png -1\n", "mixes labels with -1"),
        ("a/1.png -1\na/2.png 3\n", "mixes labels with -1"),
        ("a/1.png 0\n\na/2.png cat\n", r"line 3 of .*list\.txt is 'a/2\.png cat'"),
        ("a/1.png 0\na/2.png\n", r"line 2 of .*list\.txt"),
        ("a/1.png 1.5\n", r"line 1 of .*list\.txt"),
        ("a/1.png 0 1\n", r"line 1 of .*list\.txt"),
        (" \n\n", r"list\.txt lists no images"),
    ],
)
def test_wrong_image_lists_are_refused(text, message, tmp_path):
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        open_images(tmp_path / "list.txt")


# Parquet files


def test_parquet_round_trip_with_class_names_and_keys(parquet):
    path = parquet({"image": IMAGE, "label": ANIMALS}, image=[picture(1), picture(2)], label=[1, 0])
    images = open_images(path)
    assert images.classes == ("cat", "dog")
    assert images.labels == (1, 0)
    assert images.image(1).getpixel((0, 0)) == (2, 2, 2)
    assert len(set(images.keys)) == 2
    assert open_images(path.parent).keys == images.keys


def test_parquet_with_string_labels(parquet):
    rows = {"image": [picture(1), picture(2)], "label": ["pear", "apple"], "key": ["one", "two"]}
    images = open_images(parquet({"image": IMAGE, "label": STRING, "key": STRING}, **rows))
    assert images.classes == ("apple", "pear")
    assert images.labels == (1, 0)
    assert images.keys == ("one", "two")


def test_parquet_shards_are_read_in_the_order_of_their_names(parquet):
    for number in (2, 0, 1):
        path = parquet(
            {"image": IMAGE, "label": STRING}, f"{number}.parquet", image=[picture(number)], label=["abc"[number]]
        )
    (path.parent / "README.md").write_text("three shards")
    images = open_images(path.parent)
    assert shades(images) == [0, 1, 2]
    assert [images.label_name(i) for i in range(3)] == ["a", "b", "c"]


def test_parquet_columns_are_found_by_their_types(parquet):
    kinds = {"note": STRING, "fine": ANIMALS, "photo": IMAGE}
    images = open_images(parquet(kinds, note=["p", "q"], fine=[1, 0], photo=[picture(1), picture(2)]))
    assert images.labels == (1, 0)
    assert shades(images) == [1, 2]


def test_parquet_with_two_columns_of_classes_needs_one_named(parquet):
    places = datasets.ClassLabel(names=["home", "zoo"])
    kinds = {"image": IMAGE, "animal": ANIMALS, "place": places, "mood": STRING}
    rows = {"image": [picture(1)] * 3, "animal": [0, 0, 1], "place": [1, 0, 0], "mood": ["sad", "mad", "sad"]}
    path = parquet(kinds, **rows)
    with pytest.raises(ValueError, match=r"\['animal', 'place'\]: name one as the label column"):
        open_images(path)
    names = {
        column: [open_images(path, label_column=column).label_name(i) for i in range(3)]
        for column in rows
        if column != "image"
    }
    assert names == {"animal": ["cat", "cat", "dog"], "place": ["zoo", "home", "home"], "mood": ["sad", "mad", "sad"]}


def test_parquet_label_column_goes_before_others_with_classes(parquet):
    kinds = {"image": IMAGE, "other": ANIMALS, "label": ANIMALS}
    images = open_images(parquet(kinds, image=[picture(1)] * 3, other=[0, 0, 1], label=[1, 0, 0]))
    assert images.labels == (1, 0, 0)


def test_parquet_image_column_can_be_chosen(parquet):
    kinds = {"left": IMAGE, "right": IMAGE}
    path = parquet(kinds, left=[picture(1)], right=[picture(2)])
    assert shades(open_images(path, image_column="right")) == [2]
    with pytest.raises(ValueError, match=r"no column 'image' for the images; its columns are \['left', 'right'\]"):
        open_images(path)


def test_parquet_without_labels_is_unlabelled(parquet):
    images = open_images(parquet({"image": IMAGE, "caption": STRING}, image=[picture(1)], caption=["grey"]))
    assert (images.labels, images.classes) == ((), ())


def test_parquet_image_column_that_is_missing(parquet):
    path = parquet({"picture": NUMBER, "label": ANIMALS}, picture=[1], label=[0])
    with pytest.raises(ValueError, match=r"no column 'image' for the images; its columns are \['picture', 'label'\]"):
        open_images(path)
    with pytest.raises(ValueError, match="no column 'nope'"):
        open_images(path, image_column="nope")


def test_parquet_label_column_that_is_missing(parquet):
    path = parquet({"image": IMAGE, "kind": ANIMALS}, image=[picture(1)], kind=[0])
    with pytest.raises(ValueError, match="nope"):
        open_images(path, label_column="nope")


@pytest.mark.parametrize(("kind", "labels"), [(ANIMALS, [0, -1]), (ANIMALS, [0, None]), (STRING, ["a", None])])
def test_parquet_rows_without_a_class_are_refused(kind, labels, parquet):
    path = parquet({"image": IMAGE, "label": kind}, image=[picture(1), picture(2)], label=labels)
    with pytest.raises(ValueError, match="column 'label' has rows without a class"):
        open_images(path)


def test_parquet_numbers_as_labels_keep_their_order(parquet):
    labels = [10, 0, 9, 2, 10]
    images = open_images(parquet({"image": IMAGE, "label": NUMBER}, image=[picture(1)] * 5, label=labels))
    assert images.classes == ("0", "2", "9", "10")
    assert images.labels == (3, 0, 2, 1, 3)


def test_parquet_row_without_an_image_is_an_error_on_reading_only(parquet):
    images = open_images(parquet({"image": IMAGE}, image=[picture(1), None, picture(3)]))
    with pytest.raises(OSError, match=r"row 1 of .*set\.parquet cannot be read as an image: there is no image"):
        images.image(1)
    assert shades(images.take([0, 2])) == [1, 3]


def test_parquet_of_encoded_images_as_bytes(parquet, tmp_path):
    picture(7).save(tmp_path / "a.png")
    rows = [(tmp_path / "a.png").read_bytes(), b"no image"]
    images = open_images(parquet({"image": datasets.Value("binary")}, image=rows))
    assert shades(images.take([0])) == [7]
    with pytest.raises(OSError, match=r"row 1 of .*set\.parquet cannot be read"):
        images.image(1)


def test_parquet_images_are_turned_upright(parquet, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(9).save(tmp_path / "turned.jpg", exif=exif)
    images = open_images(parquet({"image": IMAGE}, image=[str(tmp_path / "turned.jpg")]))
    assert images.image(0).size == (8, 12)


def test_parquet_without_rows_is_refused(parquet):
    with pytest.raises(ValueError, match="no"):
        open_images(parquet({"image": IMAGE, "label": ANIMALS}, image=[], label=[]))


# Data sets saved to disk and on the Hub


def test_saved_data_set(tmp_path):
    rows = {"image": [picture(1), picture(2), picture(3)], "label": [1, 0, 1]}
    table({"image": IMAGE, "label": ANIMALS}, **rows).save_to_disk(tmp_path / "saved")
    images = open_images(tmp_path / "saved")
    assert images.classes == ("cat", "dog")
    assert images.labels == (1, 0, 1)
    assert shades(images) == [1, 2, 3]


def test_keys_tell_tables_apart(parquet):
    def keys(name, labels):
        kinds = {"image": IMAGE, "label": NUMBER}
        return open_images(parquet(kinds, image=[picture(1)] * len(labels), label=labels)).keys

    first, other, longer = keys("a", [1, 2]), keys("b", [2, 1]), keys("c", [1, 2, 2])
    assert first == keys("d", [1, 2])
    assert len({*first, *other, *longer}) == 7


def test_saved_data_set_with_splits(tmp_path):
    kinds = {"image": IMAGE, "label": ANIMALS}
    parts = {
        "train": table(kinds, image=[picture(1), picture(2)], label=[1, 0]),
        "test": table(kinds, image=[picture(3)], label=[1]),
    }
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    assert shades(open_images(tmp_path / "saved")) == [1, 2]
    assert shades(open_images(tmp_path / "saved", split="test")) == [3]
    with pytest.raises(ValueError, match=r"has no split 'val'; its splits are \['train', 'test'\]"):
        open_images(tmp_path / "saved", split="val")


ON_THE_HUB = """
import json, pathlib
from sona_pipeline.data.images import open_images

def failure(*args, **options):
    try:
        open_images(*args, **options)
    except (FileNotFoundError, ValueError) as error:
        return [type(error).__name__, str(error)]

found = {}
for split in ("train", "test"):
    images = open_images("user/things", split=split)
    pixels = [images.image(i).getpixel((0, 0)) for i in range(len(images))]
    found[split] = [images.classes, images.labels, pixels]
found["no split"] = failure("user/things", split="val")
found["no data set"] = failure("user/nothing")
pathlib.Path("found.json").write_text(json.dumps(found))
"""


def test_data_set_on_the_hub(tmp_path):
    kinds = {"image": IMAGE, "label": ANIMALS}
    (tmp_path / "things" / "data").mkdir(parents=True)
    for part, rows in {"train": {5: 1, 6: 0}, "test": {7: 1}}.items():
        path = tmp_path / "things" / "data" / f"{part}-00000-of-00001.parquet"
        table(kinds, image=[picture(shade) for shade in rows], label=list(rows.values())).to_parquet(path)
    with LoopbackHub() as hub:
        commit = hub.add("user/things", tmp_path / "things", repo_type="dataset").commit()
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | hub.environment(
            tmp_path / "home"
        )
        command = [sys.executable, "-c", ON_THE_HUB]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["train"] == [["cat", "dog"], [1, 0], [[5] * 3, [6] * 3]]
    assert found["test"] == [["cat", "dog"], [1], [[7] * 3]]
    assert found["no split"][0] == "ValueError"
    assert "val" in found["no split"][1]
    assert "['train', 'test']" in found["no split"][1]
    assert found["no data set"][0] == "FileNotFoundError"
    assert found["no data set"][1].startswith("user/nothing exists neither here nor as a data set on the Hub")
    assert f"GET /datasets/user/things/resolve/{commit}/data/test-00000-of-00001.parquet" in hub.requests


# Sources that are not there


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


# Parts of a set


def numbered(count: int, classes: int = 3) -> ImageSet:
    """Image i has the key "<i>", the class i % classes and the shade i."""
    names = tuple("abcdefg"[:classes])
    labels = tuple(i % classes for i in range(count)) if classes else ()
    return ImageSet(tuple(map(str, range(count))), labels, names, lambda i: picture(i))


def assert_consistent(images: ImageSet, everything: ImageSet):
    """Keys, labels, class names and pictures still belong together."""
    for i, key in enumerate(images.keys):
        assert images.label_name(i) == everything.label_name(int(key))
    assert shades(images) == [int(key) for key in images.keys]


@given(st.integers(1, 60), st.integers(0, 70), st.integers(0, 70))
def test_smaller_draw_is_part_of_a_larger_one(size, fewer, more):
    fewer, more = sorted((fewer, more))
    images = numbered(size)
    small, large = images.drawn(fewer), images.drawn(more)
    assert len(small) == min(fewer, size)
    assert set(small.keys) <= set(large.keys)
    assert list(large.keys) == sorted(large.keys, key=int)
    assert large.keys == numbered(size).drawn(more).keys
    assert_consistent(large, images)


def test_draw_takes_the_smallest_hashes_of_the_keys():
    keys = sorted(map(str, range(50)), key=lambda key: hashlib.sha256(key.encode()).hexdigest())
    assert set(numbered(50).drawn(12).keys) == set(keys[:12])
    assert numbered(50).drawn(50).keys == tuple(map(str, range(50)))


def test_draw_of_an_unlabelled_set_stays_unlabelled():
    drawn = numbered(50, classes=0).drawn(9)
    assert (len(drawn), drawn.labels, drawn.classes) == (9, (), ())


def test_draw_prefers_neither_the_beginning_nor_a_class():
    drawn = numbered(3000).drawn(600)
    places = np.array(drawn.keys, int)
    assert abs(places.mean() - 1500) < 4 * 3000 / np.sqrt(12 * 600)
    assert np.abs(np.bincount(drawn.labels) - 200).max() < 4 * np.sqrt(200)


@given(st.lists(st.integers(0, 19), max_size=30))
def test_take_keeps_the_order_asked_for(indices):
    images = numbered(20)
    taken = images.take(indices)
    assert taken.keys == tuple(str(i) for i in indices)
    assert taken.classes == images.classes
    assert_consistent(taken, images)
    assert_consistent(taken.take(range(len(indices))[::-1]), images)


def test_take_does_not_follow_later_changes_of_the_indices():
    indices = [3, 4]
    taken = numbered(9).take(indices)
    indices[0] = 8
    assert shades(taken) == [3, 4]


@given(st.permutations(range(4)), st.integers(0, 4))
def test_of_classes_and_with_classes_agree_with_a_filter(order, count):
    images = numbered(30, classes=4)
    names = ["abcd"[k] for k in order[:count]]
    expected = tuple(str(i) for i in range(30) if "abcd"[i % 4] in names)
    kept, renumbered = images.of_classes(names), images.with_classes(names)
    assert kept.keys == renumbered.keys == expected
    assert kept.classes == images.classes
    assert renumbered.classes == tuple(names)
    assert_consistent(kept, images)
    assert_consistent(renumbered, images)


def test_take_and_with_classes(folder):
    images = open_images(folder)
    assert images.take([2, 0]).keys == ("ünï côde/z.webp", "b/x.png")
    other = images.with_classes(["ünï côde", "b"])
    assert [other.label_name(i) for i in range(len(other))] == [images.label_name(i) for i in range(len(images))]
    assert other.labels == (1, 1, 0)


def test_unknown_classes_are_refused():
    for images in (numbered(9), numbered(9, classes=0)):
        for choose in (images.of_classes, images.with_classes):
            with pytest.raises(ValueError, match=r"no class named \['nope'\]"):
                choose([*images.classes, "nope"])


def test_a_share_of_every_class_is_held_out(tmp_path):
    for number in range(20):
        for name in "ab":
            (tmp_path / name).mkdir(exist_ok=True)
            picture(number).save(tmp_path / name / f"{number}.png")
    rest, held_out = hold_out(open_images(tmp_path), 0.1, seed=0)
    assert sorted(held_out.labels) == [0, 0, 1, 1]
    assert sorted(rest.keys + held_out.keys) == sorted(open_images(tmp_path).keys)
    assert hold_out(open_images(tmp_path), 0.1, seed=0)[1].keys == held_out.keys
    assert hold_out(open_images(tmp_path), 0.1, seed=1)[1].keys != held_out.keys


def test_at_least_one_image_of_a_class_is_held_out_and_one_is_kept():
    rest, held_out = hold_out(numbered(6), 0.01, seed=0)
    assert sorted(held_out.labels) == sorted(rest.labels) == [0, 1, 2]
    rest, held_out = hold_out(numbered(6), 0.9, seed=0)
    assert sorted(held_out.labels) == sorted(rest.labels) == [0, 1, 2]
    with pytest.raises(ValueError, match="class 'c' has 1 image: two are needed"):
        hold_out(numbered(5), 0.1, seed=0)


def test_is_grey_looks_at_pixels_not_at_modes(tmp_path):
    picture(100, "RGB").save(tmp_path / "a.png")
    assert is_grey(open_images(tmp_path))
    Image.new("RGB", (8, 8), (1, 2, 3)).save(tmp_path / "b.png")
    assert not is_grey(open_images(tmp_path))


def test_is_grey_passes_over_what_cannot_be_read(tmp_path):
    fill(tmp_path, ["b.png"])
    (tmp_path / "a.png").write_bytes(b"")
    assert is_grey(open_images(tmp_path))
