from pathlib import Path

import pytest

from sona_pipeline.common.places import check_apart, check_once, real_place


@pytest.fixture
def photos(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    (tmp_path / "link").symlink_to("photos")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / "photos"


@pytest.mark.parametrize("spelling", ["photos", "photos/", "./photos", "photos/../photos", "link", "link/", "~/photos"])
def test_all_spellings_of_a_folder_are_one_place(spelling, photos):
    assert real_place(spelling) == real_place(str(photos))
    with pytest.raises(ValueError, match=r"^--near a=.*photos and --far b=.* are one place: give it once$"):
        check_once([(f"--near a={photos}", str(photos)), ("--id", "me/photos"), (f"--far b={spelling}", spelling)])


def test_what_is_given_twice_is_named_once(photos):
    with pytest.raises(ValueError, match=r"^--near a=me/birds is given twice: give it once$"):
        check_once([("--near a=me/birds", "me/birds")] * 2)
    with pytest.raises(ValueError, match="are one place"):
        check_once([("--near a=gone", "gone"), ("--near b=./gone/", "./gone/")])
    check_once([("--near a", "me/birds"), ("--near b", "me/photos"), ("--far c", "photos"), ("--far d", "none")])


@pytest.mark.parametrize("output", ["photos", "photos/set", "./photos/../photos/set", "link/set"])
def test_what_is_written_may_not_lie_among_the_images(photos, output):
    with pytest.raises(ValueError, match=r"is or lies in photos, and would count as images of it the next time"):
        check_apart(Path(output), "photos")


@pytest.mark.parametrize(
    ("output", "data"), [("photos 2", "photos"), (".", "photos"), ("set", "owner/photos"), ("s3://bucket/set", ".")]
)
def test_what_is_written_may_lie_beside_the_images(photos, output, data):
    check_apart(Path(output), data)
