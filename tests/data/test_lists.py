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
    with pytest.raises(OSError, match=r"ünï.1\.png cannot be read: it does not exist"):
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


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_lists_are_read_in_utf_8_and_in_utf_16_with_a_mark(encoding, tmp_path):
    fill(tmp_path, ["café/1.png", "猫/2.png"])
    mark = "\ufeff" if encoding in ("utf-16-le", "utf-16-be") else ""
    (tmp_path / "list.txt").write_bytes(f"{mark}café/1.png 0\r\n猫/2.png 1\r\n".encode(encoding))
    images = open_images(tmp_path / "list.txt")
    assert (images.classes, shades(images)) == (("café", "猫"), [10, 20])
    assert list_classes(tmp_path / "list.txt") == {0: "café", 1: "猫"}


@pytest.mark.parametrize("content", ["café/1.png 0\n".encode("cp1252"), "a/1.png 0\n".encode("utf-16-le"), b"\0PNG"])
def test_lists_in_other_encodings_are_refused(content, tmp_path):
    fill(tmp_path, ["elk/1.png"])
    (tmp_path / "list.txt").write_bytes(content)
    (tmp_path / "fine.txt").write_text("elk/1.png 0\n")
    for sources in (("list.txt", None), ("fine.txt", tmp_path / "list.txt")):
        with pytest.raises(ValueError, match=r"list\.txt is no text in UTF-8: save it as UTF-8"):
            open_images(tmp_path / sources[0], class_list=sources[1])


def test_paths_of_windows_are_understood(tmp_path):
    fill(tmp_path, ["t/elk/1.png", "t/owl/2 a.png", "u/owl/3.png"])
    (tmp_path / "list.txt").write_text("u/owl/3.png 1\nt\\elk\\1.png 0\n")
    images = open_images(tmp_path / "list.txt")
    assert (images.keys, images.classes) == (("u/owl/3.png", "t/elk/1.png"), ("elk", "owl"))
    assert shades(images) == [30, 10]
    assert list_classes(tmp_path / "list.txt") == {0: "elk", 1: "owl"}


def test_paths_of_windows_that_lead_nowhere_are_named(tmp_path):
    fill(tmp_path, ["elk/1.png"])
    (tmp_path / "list.txt").write_text("C:\\photos\\elk\\1.png 0\n")
    with pytest.raises(FileNotFoundError, match=r"neither that nor C:/photos/elk/1\.png lies in .*: write paths with"):
        open_images(tmp_path / "list.txt")
    (tmp_path / "elk\\2.png").write_bytes((tmp_path / "elk" / "1.png").read_bytes())
    (tmp_path / "list.txt").write_text("elk\\2.png 0\n")
    assert open_images(tmp_path / "list.txt").keys == ("elk\\2.png",)


@pytest.mark.parametrize("again", ["elk/1.png", "./elk/1.png", "elk//1.png", "owl/../elk/1.png", "elk\\1.png"])
def test_a_path_twice_is_named(again, tmp_path):
    fill(tmp_path, ["elk/1.png"])
    (tmp_path / "list.txt").write_text(f"elk/1.png 0\nowl/1.png 0\n{again} 0\n")
    with pytest.raises(ValueError, match=r"list\.txt lists .*elk/+1\.png twice"):
        open_images(tmp_path / "list.txt")


def test_an_image_root_that_is_no_folder_is_named(tmp_path):
    fill(tmp_path, ["elk/1.png"])
    (tmp_path / "list.txt").write_text("elk/1.png 0\n")
    for root in (tmp_path / "gone", tmp_path / "list.txt"):
        with pytest.raises(FileNotFoundError, match=rf"the image root {root} is no folder: give the one that"):
            open_images(tmp_path / "list.txt", image_root=root)
