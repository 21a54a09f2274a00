import numpy as np

from sona_pipeline.data import sample
from sona_pipeline.data.image_set import is_grey

ID_CLASSES = ("t-shirt", "trouser", "pullover", "dress", "shirt", "sneaker")


def test_parts_are_disjoint_and_balanced():
    parts = {name: sample.id_images(name) for name in ("train", "validation", "test")}
    for images in parts.values():
        assert images.classes == ID_CLASSES
        assert len(set(np.bincount(images.labels))) == 1
    keys = [key for images in parts.values() for key in images.keys]
    assert len(set(keys)) == len(keys)
    assert all(key.startswith("test-") for key in parts["test"].keys)


def test_ood_sets_hold_grey_images_of_one_size():
    sets = {**sample.near_ood(), **sample.far_ood()}
    assert set(sets) == {"coat", "ankle boot", "digits", "photos"}
    for images in sets.values():
        assert len(images) >= 400
        assert images.image(0).size == (sample.SIDE, sample.SIDE)
        assert is_grey(images)


def test_real_outliers_are_of_the_ood_labels_and_as_many_as_the_training_images():
    outliers, train = sample.real_outliers(), sample.id_images("train")
    assert outliers.classes == sample.OOD_LABELS and np.bincount(outliers.labels).tolist() == [750, 750]
    assert len(outliers) == len(train) and not set(outliers.keys) & set(train.keys)
    assert is_grey(outliers)


def test_sample_is_small_and_carries_its_licence():
    files = list(sample.SAMPLE.iterdir())
    assert sum(p.stat().st_size for p in files) <= 6e6
    assert "Zalando" in (sample.SAMPLE / "LICENSE").read_text()


def test_ood_labels_are_known_to_no_detector():
    assert not set(sample.OOD_LABELS) & {*ID_CLASSES, *sample.near_ood()}
