"""Which files `sona score` looks at."""

from pathlib import Path

import pytest
from pictures import fill

from sona_pipeline.detection.detector import Detection
from sona_pipeline.detection.scoring import files_of, table_of


def test_images_of_files_and_folders_are_each_scored_once(tmp_path, caplog):
    fill(tmp_path, ["in/b.png", "in/deep/a.png", "in/@eaDir/b.png", "in/._b.png", "lone.png"])
    (tmp_path / "in" / "notes.txt").write_text("")
    (tmp_path / "in" / "link.png").symlink_to("b.png")
    found = files_of([tmp_path / "lone.png", tmp_path / "in", tmp_path / "in" / "b.png"])
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["lone.png", "in/b.png", "in/deep/a.png"]
    assert "passed over 1 file without the suffix of an image (1 .txt)" in caplog.text
    assert "passed over a link to what counts already: link.png" in caplog.text


def test_places_without_images_are_named(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.zip").write_bytes(b"PK")
    with pytest.raises(
        FileNotFoundError, match=r"no images under .*/in, only 1 file .* \(1 \.zip\): unpack the archives"
    ):
        files_of([tmp_path / "in"])
    with pytest.raises(ValueError, match=r"a\.zip is an archive: unpack it"):
        files_of([tmp_path / "in" / "a.zip"])
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        files_of([tmp_path / "nowhere"])


def test_places_may_start_at_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    fill(tmp_path, ["in/a.png"])
    assert files_of(["~/in"]) == [tmp_path / "in" / "a.png"]


@pytest.mark.parametrize(("one", "other"), [("in", "in/."), ("in", "in"), ("in/a.png", "./in/a.png")])
def test_a_place_that_is_given_twice_is_named(one, other, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path, ["in/a.png", "in/b.png"])
    (tmp_path / "in" / "link.png").symlink_to("a.png")
    with pytest.raises(ValueError, match=r"in.* (is given twice|are one place): give it once"):
        files_of([one, other])
    assert files_of(["in/a.png", "in/link.png"]) == [Path("in/a.png"), Path("in/link.png")]  # as a shell lists them


def test_the_table_has_the_score_that_the_verdict_is_by():
    said = Detection("cat", 0.5, energy=-3.0, score=2.5, is_ood=True)
    table = table_of([(Path("a.png"), said), (Path("b.png"), "no image")], "energy+knn")
    assert [column.header for column in table.columns] == ["image", "label", "confidence", "energy+knn", "verdict"]
    assert list(table.columns[3].cells) == ["2.500", ""]
