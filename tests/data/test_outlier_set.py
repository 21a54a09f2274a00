import datasets
import numpy as np
import pytest
from outlier_sets import new_set, reject, sample
from PIL import Image

from sona_pipeline.data.image_set import ImageSet
from sona_pipeline.data.images import open_images
from sona_pipeline.data.outlier_set import open_outlier_set, read_rejects, read_rows
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
