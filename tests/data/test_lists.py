import datasets
import pytest
from pictures import fill, shades

from sona_pipeline.data.images import open_images
from sona_pipeline.data.lists import is_image_list, list_classes, open_list

IMAGE, STRING, NUMBER = datasets.Image(), datasets.Value("string"), datasets.Value("int64")
ANIMALS = datasets.ClassLabel(names=["cat", "dog"])


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
