import json

import datasets
import numpy as np
import pytest
from outlier_sets import new_set, reject, sample
from PIL import Image

from sona_pipeline.data.image_set import ImageSet
from sona_pipeline.data.images import open_images
from sona_pipeline.data.outlier_set import open_outlier_set, open_outlier_sets, read_rejects, read_rows
from sona_pipeline.data.settings import FORMATS

formats = pytest.mark.parametrize("form", FORMATS)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """A place of its own for what `datasets` caches."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@formats
def test_rows_and_rejects_can_be_read_before_the_end(form, tmp_path):
    writer = new_set(tmp_path, form)
    assert list(read_rows(tmp_path)) == list(read_rejects(tmp_path)) == []
    writer.commit("a", [sample(4)], [reject(5)])
    writer.finish()
    writer.commit("b", [sample(1)], [reject(2)])
    assert [row["stop_step"] for row in read_rows(tmp_path)] == [1, 4]
    assert list(read_rejects(tmp_path)) == [reject(2), reject(5)]
    assert writer.committed() == {"b"}


@formats
def test_a_set_opens_beside_its_images_in_their_order(form, tmp_path, monkeypatch):
    monkeypatch.setattr("sona_pipeline.data.outlier_writer.SHARD_BYTES", 1)
    writer = new_set(tmp_path, form)
    writer.commit("b", [sample(25), sample(8)], [reject(5)])
    writer.commit("a", [sample(50)], [])
    writer.finish()
    keys = ("key 50", "key 5", "key 8", "key 25", "key 1")
    shades = [Image.new("L", (4, 4), 100 + k) for k in range(5)]
    pairs = open_outlier_set(tmp_path, ImageSet(keys, (0, 0, 1, 0, 0), ("a", "b"), shades.__getitem__))
    assert pairs.images.keys == ("key 50", "key 8", "key 25")
    assert pairs.images.labels == (0, 1, 0)
    assert pairs.strengths == (1.0, 0.16, 0.5)
    for images, expected in (
        (pairs.images, [100, 102, 103]),
        (pairs.outliers, [50, 8, 25]),
        (pairs.reconstructions, [51, 9, 26]),
    ):
        assert [int(np.asarray(images.image(k)).mean()) for k in range(3)] == expected
    with pytest.raises(ValueError, match=r"no outlier in .* comes from these images"):
        open_outlier_set(tmp_path, ImageSet(("other",), (0,), ("a",), shades.__getitem__))


def test_content_tells_sets_of_the_same_names_apart(tmp_path):
    images = ImageSet(("key 1", "key 2"), (0, 1), ("a", "b"), [Image.new("L", (4, 4))].__getitem__)
    found = {}
    for name, digests in {"one": "xy", "copy": "xy", "other": "xz", "unknown": ""}.items():
        writer = new_set(tmp_path / name, "folder")
        samples = [sample(1), sample(2)]
        for one, digest in zip(samples, digests):
            one.row["sha256"] = digest
        writer.commit("a", samples, [])
        writer.finish()
        found[name] = open_outlier_set(tmp_path / name, images).content
    assert found["one"] == found["copy"] != found["other"] and found["unknown"] is None
    for names in (["one"], ["one", "other"], ["other", "one"], ["unknown", "one"]):
        found["+".join(names)] = open_outlier_sets([tmp_path / name for name in names], images).content
    assert len({found[name] for name in ("one", "one+other", "other+one")}) == 3 and found["unknown+one"] is None


def test_several_sets_of_the_same_images_are_opened_as_one(tmp_path):
    """The second set lacks an outlier of one image, and has it of an image that is not in the first."""
    for name, form, numbers in (("one", "folder", (50, 8, 25)), ("two", "parquet", (25, 50, 1))):
        writer = new_set(tmp_path / name, form)
        writer.commit("a", [sample(number) for number in numbers], [])
        writer.finish()
    keys = ("key 25", "key 1", "key 8", "key 50")
    images = ImageSet(keys, (0, 1, 0, 1), ("a", "b"), [Image.new("L", (4, 4), 100 + k) for k in range(4)].__getitem__)
    pairs = open_outlier_sets([tmp_path / "one", tmp_path / "two", tmp_path / "one"], images)
    assert (pairs.images.keys, pairs.images.labels) == (("key 25", "key 50"), (0, 1))
    shades = [int(np.asarray(pairs.outliers.image(k)).mean()) for k in range(len(pairs.outliers))]
    assert shades == [25, 50, 25, 50, 25, 50]
    assert pairs.strengths == (0.5, 1.0) * 3
    assert [int(np.asarray(pairs.reconstructions.image(k)).mean()) for k in range(2)] == [26, 51]


def test_sets_that_do_not_go_together_are_refused(tmp_path):
    for number in (1, 2):
        writer = new_set(tmp_path / str(number), "folder")
        writer.commit("a", [sample(number)], [])
        writer.finish()
    images = ImageSet(("key 1", "key 2"), (0, 1), ("a", "b"), [Image.new("L", (4, 4))].__getitem__)
    with pytest.raises(ValueError, match=r"no image has an outlier in each of .*1, .*2: give sets of one data set"):
        open_outlier_sets([tmp_path / "1", tmp_path / "2"], images)
    settings = json.loads((tmp_path / "1" / "settings.json").read_text())
    settings |= {"notes": {"model_size": 32}, "save_size": None, "codec": "png", "quality": None}
    (tmp_path / "1" / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"1 and .*2 are kept in different sizes or codecs, KeptForm\(.*: make them"):
        open_outlier_sets([tmp_path / "1", tmp_path / "2"], images)


def test_a_folder_that_is_no_set_is_refused(tmp_path):
    (tmp_path / "settings.json").write_text('{"network": "resnet8"}')
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match="is not a set made by `sona generate`"):
            list(read_rows(folder))


def test_a_set_is_no_image_folder(tmp_path):
    (tmp_path / "settings.json").write_text('{"ood_labels": ["bag"]}')
    for kind in ("outliers", "reconstructions"):
        (tmp_path / kind / "coat").mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / kind / "coat" / "1.png")
    with pytest.raises(ValueError, match=r"is a set made by `sona generate`, and no image folder: give .*outliers for"):
        open_images(tmp_path)
    assert open_images(tmp_path / "outliers").classes == ("coat",)
