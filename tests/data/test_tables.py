import json
import os
import subprocess
import sys

import datasets
import pytest
from loopback_hub import LoopbackHub
from pictures import picture, shades
from PIL import Image

from sona_pipeline.data.images import open_images

IMAGE, STRING, NUMBER = datasets.Image(), datasets.Value("string"), datasets.Value("int64")
ANIMALS = datasets.ClassLabel(names=["cat", "dog"])


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
