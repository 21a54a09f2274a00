import datetime
import decimal
import io
import json
import os
import subprocess

import datasets
import numpy as np
import pyarrow as pa
import pytest
from loopback_hub import LoopbackHub
from pictures import picture, shades
from PIL import Image
from pyarrow import parquet as pq
from warm_python import fresh_python

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
found["a script"], found["damaged"] = failure("user/script"), failure("user/damaged")
pathlib.Path("found.json").write_text(json.dumps(found))
"""


def test_data_set_on_the_hub(tmp_path):
    kinds = {"image": IMAGE, "label": ANIMALS}
    (tmp_path / "things" / "data").mkdir(parents=True)
    for part, rows in {"train": {5: 1, 6: 0}, "test": {7: 1}}.items():
        path = tmp_path / "things" / "data" / f"{part}-00000-of-00001.parquet"
        table(kinds, image=[picture(shade) for shade in rows], label=list(rows.values())).to_parquet(path)
    for name, content in {"script/script.py": b"import datasets", "damaged/train.parquet": b"PAR1 no table"}.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(content)
    with LoopbackHub() as hub:
        for name in ("script", "damaged"):
            hub.add(f"user/{name}", tmp_path / name, repo_type="dataset").commit()
        commit = hub.add("user/things", tmp_path / "things", repo_type="dataset").commit()
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | hub.environment(
            tmp_path / "home"
        )
        command = [fresh_python(), "-c", ON_THE_HUB]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["train"] == [["cat", "dog"], [1, 0], [[5] * 3, [6] * 3]]
    assert found["test"] == [["cat", "dog"], [1], [[7] * 3]]
    assert found["no split"][0] == "ValueError"
    assert "val" in found["no split"][1]
    assert "['train', 'test']" in found["no split"][1]
    for name in ("script", "damaged"):
        kind, message = found["a script" if name == "script" else name]
        assert kind == "ValueError" and message.startswith(f"user/{name} cannot be read as a table: "), message
    assert found["no data set"][0] == "FileNotFoundError"
    assert found["no data set"][1].startswith("user/nothing exists neither here nor as a data set on the Hub")
    assert f"GET /datasets/user/things/resolve/{commit}/data/test-00000-of-00001.parquet" in hub.requests


# Splits


def shard(path, shades_: list[int], features=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = {"image": [picture(shade) for shade in shades_], "label": [shade % 2 for shade in shades_]}
    kinds = {"image": IMAGE, "label": ANIMALS} if features is None else features
    table(kinds, **rows).to_parquet(path)


LAYOUTS = {
    "flat": ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test-00000-of-00001.parquet"],
    "cloned": [f"data/{name}" for name in ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet")]
    + ["data/test-00000-of-00001.parquet"],
    "folders": ["train/0000.parquet", "train/0001.parquet", "test/0000.parquet"],
    "converted": ["default/train/0000.parquet", "default/train/0001.parquet", "default/test/0000.parquet"],
    "words": ["training_a.parquet", "training_b.parquet", "my-eval.parquet"],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_shards_of_several_splits_are_told_apart(layout, tmp_path):
    for number, name in enumerate(LAYOUTS[layout], start=1):
        shard(tmp_path / "set" / name, [10 * number, 10 * number + 1])
    shard(tmp_path / "alone" / "0.parquet", [10, 11, 20, 21])
    before = sorted(tmp_path.rglob("*"))
    train, test = (open_images(tmp_path / "set", split=split) for split in ("train", "test"))
    assert (shades(train), shades(test)) == ([10, 11, 20, 21], [30, 31])
    assert train.keys == open_images(tmp_path / "alone").keys
    with pytest.raises(ValueError, match=r"set has no split 'validation'; its splits are \['train', 'test'\]"):
        open_images(tmp_path / "set", split="validation")
    assert sorted(tmp_path.rglob("*")) == before


def test_the_readme_of_a_cloned_data_set_tells_splits_and_names(tmp_path):
    plain = {"image": IMAGE, "label": NUMBER}
    shard(tmp_path / "a" / "plain_text" / "part1.parquet", [10, 11], plain)
    shard(tmp_path / "a" / "plain_text" / "part2.parquet", [20], plain)
    shard(tmp_path / "a" / "old" / "part1.parquet", [99], plain)
    picture(5).save(tmp_path / "a" / "plot.png")
    names = "{'0': cat, '1': dog}"
    (tmp_path / "a" / "README.md").write_text(
        "---\nconfigs:\n- config_name: plain_text\n  data_files:\n"
        "  - split: train\n    path: plain_text/part1*\n  - split: hold_out\n    path: plain_text/part2*\n"
        "dataset_info:\n  config_name: plain_text\n  features:\n  - name: image\n    dtype: image\n"
        f"  - name: label\n    dtype:\n      class_label:\n        names: {names}\n---\nimages\n"
    )
    images = open_images(tmp_path / "a")
    assert (images.classes, images.labels, shades(images)) == (("cat", "dog"), (0, 1), [10, 11])
    assert shades(open_images(tmp_path / "a", split="hold_out")) == [20]
    with pytest.raises(ValueError, match=r"no split 'test'; its splits are \['train', 'hold_out'\]"):
        open_images(tmp_path / "a", split="test")


def test_a_readme_with_several_data_sets_is_refused(tmp_path):
    entries = ""
    for name in ("fine", "coarse"):
        shard(tmp_path / name / "train-0.parquet", [10])
        entries += f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}/train-*\n"
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{entries}---\n")
    with pytest.raises(ValueError, match=r"holds several data sets, \['fine', 'coarse'\]: give the folder"):
        open_images(tmp_path)
    assert shades(open_images(tmp_path / "fine")) == [10]


def test_shards_without_split_names_are_all_read_whatever_the_split(tmp_path):
    for number in (1, 2):
        shard(tmp_path / "test" / f"{number}.parquet", [number])
    assert shades(open_images(tmp_path / "test", split="validation")) == [1, 2]


def test_a_shard_of_no_split_beside_splits_is_refused(tmp_path):
    for name in ("train-0.parquet", "extra.parquet"):
        shard(tmp_path / name, [1])
    with pytest.raises(ValueError, match=r"holds the splits \['train'\], and extra.parquet belongs to none"):
        open_images(tmp_path)
    assert shades(open_images(tmp_path / "extra.parquet", split="test")) == [1]


# Types of columns


def encoded(shade: int) -> bytes:
    content = io.BytesIO()
    picture(shade).save(content, "PNG")
    return content.getvalue()


def written(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


BYTES = [encoded(1), encoded(2)]
ROWS = [[[1] * 12] * 8, [[2] * 12] * 8]
COLOURS = [[[[1] * 3] * 12] * 8, [[[2] * 3] * 12] * 8]
STORED = pa.struct({"bytes": pa.large_binary(), "path": pa.large_string()})
TAKEN = {
    "binary": pa.array(BYTES),
    "large_binary": pa.array(BYTES, pa.large_binary()),
    "binary_view": pa.array(BYTES, pa.binary_view()),
    "dictionary": pa.array(BYTES).dictionary_encode(),
    "struct": pa.array([{"bytes": content, "path": None} for content in BYTES]),
    "large struct": pa.array([{"bytes": content, "path": "a.png"} for content in BYTES], STORED),
    "bytes alone": pa.array([{"bytes": content} for content in BYTES]),
    "rows": pa.array(ROWS),
    "rows of bytes": pa.array(ROWS, pa.list_(pa.list_(pa.uint8()))),
    "large rows": pa.array(ROWS, pa.large_list(pa.large_list(pa.int32()))),
    "fixed rows": pa.array(ROWS, pa.list_(pa.list_(pa.uint8(), 12), 8)),
    "colours": pa.array(COLOURS, pa.list_(pa.list_(pa.list_(pa.uint8())))),
    "fixed colours": pa.array(COLOURS, pa.list_(pa.list_(pa.list_(pa.int64(), 3), 12), 8)),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_images_of_many_types(kind, tmp_path):
    images = open_images(written(tmp_path / "a.parquet", image=TAKEN[kind], label=["x", "y"]))
    assert shades(images) == [1, 2]
    assert {images.image(i).size for i in range(2)} == {(12, 8)}


@pytest.mark.parametrize(
    ("kind", "mode"), [(datasets.Array2D((8, 12), "uint8"), "L"), (datasets.Array3D((8, 12, 3), "uint8"), "RGB")]
)
def test_images_as_arrays(kind, mode, parquet):
    rows = ROWS if mode == "L" else COLOURS
    images = open_images(parquet({"image": kind, "label": ANIMALS}, image=rows, label=[0, 1]))
    assert (shades(images), images.image(0).mode) == ([1, 2], mode)


def test_paths_of_image_files_in_a_column(tmp_path):
    picture(7).save(tmp_path / "a.png")
    paths = [str(tmp_path / "a.png"), str(tmp_path / "gone.png")]
    images = open_images(written(tmp_path / "a.parquet", image=paths, label=["x", "y"]))
    assert shades(images.take([0])) == [7]
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        images.image(1)


REFUSED = {
    "flat pixels": ([[1] * 784] * 2, "list<item: int64>"),
    "fixed flat pixels": (pa.array([[1] * 784] * 2, pa.list_(pa.uint8(), 784)), "fixed_size_list<item: uint8>"),
    "number": ([1, 2], "int64"),
    "fraction": ([0.5, 1.5], "double"),
    "struct": ([{"a": 1}] * 2, "struct<a: int64>"),
    "list of images": ([[encoded(1)]] * 2, "list<item: binary>"),
    "decimal": ([decimal.Decimal("1.5")] * 2, "decimal128"),
    "time": ([datetime.datetime(2020, 1, 1)] * 2, "timestamp"),
    "map": (pa.array([[("a", 1)]] * 2, pa.map_(pa.string(), pa.int64())), "map<string, int64"),
    "nothing": (pa.nulls(2), "null"),
    "four lists": ([[[[[1]]]]] * 2, "list<"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_images_of_other_types_are_refused_before_anything_is_read(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.Dataset, "from_parquet", lambda *args, **options: pytest.fail("was read"))
    values, said = REFUSED[kind]
    with pytest.raises(ValueError, match="'image'") as raised:
        open_images(written(tmp_path / "a.parquet", image=values, label=["x", "y"]))
    assert f"of the type {said}" in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([[[[1] * 12] * 8] * 3] * 2, "shape 3 x 8 x 12"),
        ([[[1, 2], [3]]] * 2, "not of one length"),
        ([[[-1, 2]]] * 2, "whole numbers in 0..65535"),
        ([[[[300, 2, 2]]]] * 2, "whole numbers in 0..255"),
        (["iVBORw0KGgo" * 500] * 2, "text such as 'iVBORw0KGgo"),
        (["a cat", "a dog"], "text such as 'a cat', where no image file lies"),
    ],
)
def test_columns_of_a_type_but_not_of_images_are_refused(values, said, tmp_path):
    with pytest.raises(ValueError, match=r"column 'image' of .*a\.parquet") as raised:
        open_images(written(tmp_path / "a.parquet", image=values, label=["x", "y"]))
    assert said in str(raised.value) and len(str(raised.value)) < 500


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([True, False], ("False", "True")),
        ([2.0, 10.0], ("2", "10")),
        (pa.array([2, 10], pa.uint8()), ("2", "10")),
        (pa.array(["a", "b"]).dictionary_encode(), ("a", "b")),
        (pa.array(["a", "b"], pa.large_string()), ("a", "b")),
        (pa.array(["a", "b"], pa.string_view()), ("a", "b")),
        (pa.array(np.array([1, 3], np.float16)), ("1", "3")),
    ],
)
def test_labels_of_many_types(labels, classes, tmp_path):
    images = open_images(written(tmp_path / "a.parquet", image=BYTES, label=labels))
    assert images.classes == classes
    assert {images.label_name(i) for i in range(2)} == set(classes)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([[0, 1], [1, 0]], "is of the type list<item: int64>, but labels have to be names"),
        ([{"a": 1}] * 2, "is of the type struct<a: int64>"),
        ([decimal.Decimal("1.0")] * 2, "is of the type decimal128"),
        ([datetime.datetime(2020, 1, 1)] * 2, "is of the type timestamp"),
        ([b"a", b"b"], "is of the type binary"),
        ([0.5, 1.0], "has the label 0.5: labels have to be whole numbers or names"),
        ([1.0, float("nan")], "has rows without a class"),
        ([1, -1], "has rows without a class"),
        (pa.nulls(2), "has rows without a class"),
        (["Caf\u00e9", "Cafe\u0301"], "has two spellings of the class"),
    ],
)
def test_labels_that_are_refused(labels, said, tmp_path):
    with pytest.raises(ValueError, match="column 'label'") as raised:
        open_images(written(tmp_path / "a.parquet", image=BYTES, label=labels))
    assert said in str(raised.value)


def test_tables_whose_classes_are_needed_say_which_columns_there_are(tmp_path):
    path = written(tmp_path / "a.parquet", image=BYTES, fine_label=[7, 8], coarse_label=[0, 0])
    assert open_images(path).labels == ()
    columns = r"\['image', 'fine_label', 'coarse_label'\]"
    with pytest.raises(ValueError, match=rf"no column 'label' for the classes: name .*--label-column.*{columns}"):
        open_images(path, labelled=True)
    assert open_images(path, labelled=True, label_column="fine_label").classes == ("7", "8")


def test_images_whose_classes_are_not_needed_stay_unlabelled(parquet):
    places = datasets.ClassLabel(names=["home", "zoo"])
    kinds = {"photo": IMAGE, "animal": ANIMALS, "place": places}
    path = parquet(kinds, photo=[picture(1)], animal=[0], place=[1])
    images = open_images(path, labelled=False, image_column="image", label_column="label")
    assert (images.labels, shades(images)) == ((), [1])
    path = parquet({"image": IMAGE, "label": ANIMALS}, name="b.parquet", image=[picture(1)], label=[-1])
    assert open_images(path, labelled=False).labels == ()


def test_what_is_no_parquet_file_is_named(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=r"a\.parquet is no parquet file, or a damaged one"):
        open_images(tmp_path)


def test_shards_that_do_not_fit_together_are_named(tmp_path):
    written(tmp_path / "1.parquet", image=BYTES, label=[0, 1])
    written(tmp_path / "2.parquet", image=BYTES, kind=["a", "b"])
    with pytest.raises(ValueError, match=r"1\.parquet and 1 more cannot be read as a table: ") as raised:
        open_images(tmp_path)
    assert "\n" not in str(raised.value)
