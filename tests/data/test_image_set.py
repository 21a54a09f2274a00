import hashlib
import io

import datasets
import numpy as np
import pytest
from hypothesis import given, strategies as st
from pictures import fill, picture, shades
from PIL import Image

from sona_pipeline.data.image_set import ImageSet, are_same, hold_out, is_grey
from sona_pipeline.data.images import open_images

IMAGE, STRING, NUMBER = datasets.Image(), datasets.Value("string"), datasets.Value("int64")
ANIMALS = datasets.ClassLabel(names=["cat", "dog"])


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


def test_sets_of_other_keys_or_pictures_are_not_the_same():
    images = numbered(5)
    brighter = ImageSet(images.keys, images.labels, images.classes, lambda i: picture(i + 1))
    broken = ImageSet(images.keys, images.labels, images.classes, lambda i: Image.open(io.BytesIO()))
    assert are_same(images, numbered(5, classes=0)) and are_same(images, broken)
    assert not are_same(images, brighter) and not are_same(images, numbered(4))


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


def test_take_and_with_classes(tmp_path):
    images = open_images(fill(tmp_path, ["b/x.png", "b/y 1.png", "ünï côde/z.webp"]))
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


def test_classes_are_found_however_unicode_writes_their_letters():
    images = ImageSet(("a", "b", "c"), (0, 1, 0), ("Cafe\u0301", "bar"), lambda i: None)
    assert images.of_classes(["Caf\u00e9"]).keys == ("a", "c")
    renamed = images.with_classes(["bar", "Caf\u00e9"])
    assert (renamed.labels, renamed.classes) == ((1, 0, 1), ("bar", "Caf\u00e9"))
    with pytest.raises(ValueError, match=r"no class named \['cafe'\]"):
        images.of_classes(["cafe", "bar"])
