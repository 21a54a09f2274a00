import json
import os
import tarfile
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import pytest
from outlier_sets import name_of, new_set, reject, sample

from sona_pipeline.data.images import open_images
from sona_pipeline.data.outlier_set import open_outliers, read_rejects, read_rows
from sona_pipeline.data.outlier_writer import OutlierWriter
from sona_pipeline.data.settings import FORMATS

formats = pytest.mark.parametrize("form", FORMATS)
shard_formats = pytest.mark.parametrize("form", ["parquet", "webdataset"])


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """A place of its own for what `datasets` caches."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def table_of(folder: Path) -> list[dict]:
    path = next(p for p in (folder / "metadata.jsonl", folder / "outliers" / "metadata.jsonl") if p.exists())
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def pictures_of(folder: Path, form: str) -> list[tuple[str, bytes, bytes]]:
    """Name, outlier and round trip of all that is stored, sorted; read without the package and without `datasets`."""
    found, root = [], folder / "outliers"
    if form == "folder":
        for path in root.glob("*/[!.]*"):
            name = path.relative_to(root)
            found.append((name.as_posix(), path.read_bytes(), (folder / "reconstructions" / name).read_bytes()))
    elif form == "parquet":
        for path in root.glob("*.parquet"):
            found += [
                (row["file_name"], row["image"]["bytes"], row["reconstruction"]["bytes"])
                for row in pq.read_table(path).to_pylist()
            ]
    else:
        for path in root.glob("*.tar"):
            with tarfile.open(path) as tar:
                files = [(member.name, tar.extractfile(member).read()) for member in tar]
            assert len(files) == len(dict(files))
            files = dict(files)
            for stem in sorted({name.split(".")[0] for name in files}):
                row = json.loads(files[f"{stem}.json"])
                found.append((row["file_name"], files[f"{stem}.png"], files[f"{stem}.reconstruction.png"]))
    return sorted(found)


def contents(folder: Path, form: str) -> dict:
    """All that a set says, whatever its files are called; every sample has to be there once."""
    pictures, rows = pictures_of(folder, form), table_of(folder)
    assert [name for name, *_ in pictures] == [row["file_name"] for row in rows]
    lists = {
        name: (folder / name).read_text() for name in ("outliers.txt", "rejects.jsonl") if (folder / name).exists()
    }
    return {"rows": rows, "pictures": pictures, **lists}


@formats
def test_a_finished_set_has_what_was_committed_sorted_by_file_name(form, tmp_path):
    writer = new_set(tmp_path, form)
    writer.commit("b", [sample(9), sample(2)], [reject(5)])
    writer.commit("a", [sample(4), sample(7)], [])
    writer.commit("c", [], [reject(1)])
    writer.finish()
    names = sorted(map(name_of, (2, 4, 7, 9)))
    assert table_of(tmp_path) == [sample(int(name[-8:-4], 16)).row for name in names]
    assert pictures_of(tmp_path, form) == sorted(
        (name_of(n), sample(n).outlier, sample(n).reconstruction) for n in (2, 4, 7, 9)
    )
    assert list(read_rejects(tmp_path)) == [reject(1), reject(5)]
    assert not list(tmp_path.rglob(".*"))


@formats
def test_a_set_may_be_finished_in_several_runs(form, tmp_path):
    writer = new_set(tmp_path / "twice", form)
    writer.commit("a", [sample(4), sample(9)], [reject(5)])
    writer.finish()
    OutlierWriter(tmp_path / "twice", form).finish()
    writer = OutlierWriter(tmp_path / "twice", form)
    writer.commit("b", [sample(1)], [reject(2)])
    writer.finish()
    once = new_set(tmp_path / "once", form)
    once.commit("c", [sample(1), sample(4), sample(9)], [reject(2), reject(5)])
    once.finish()
    assert contents(tmp_path / "twice", form) == contents(tmp_path / "once", form)


@formats
def test_done_are_the_outliers_that_are_there_and_the_rejected(form, tmp_path):
    writer = new_set(tmp_path, form)
    assert writer.done(True) == set()
    writer.commit("a", [sample(4), sample(9)], [reject(5)])
    assert writer.done(True) == OutlierWriter(tmp_path, form).done(True) == {4, 5, 9}
    writer.finish()
    writer.commit("b", [sample(1)], [])
    assert writer.done(True) == {1, 4, 5, 9}


def test_a_deleted_picture_is_not_done(tmp_path):
    writer = new_set(tmp_path, "folder")
    writer.commit("a", [sample(4), sample(9), sample(3)], [reject(5)])
    writer.finish()
    (tmp_path / "outliers" / name_of(4)).unlink()
    (tmp_path / "reconstructions" / name_of(9)).unlink()
    assert writer.done(True) == {3, 5}
    assert writer.done(False) == {3, 5, 9}
    writer.commit("again", [sample(4), sample(9)], [])
    writer.finish()
    assert [row["stop_step"] for row in table_of(tmp_path)] == [4, 3, 9]
    assert writer.done(True) == {3, 4, 5, 9}


@shard_formats
def test_a_part_that_was_not_committed_is_not_merged(form, tmp_path):
    writer = new_set(tmp_path, form)
    for name in "abc":
        writer.commit(name, [sample(ord(name) - 96)], [])
    (writer.parts / "b.jsonl").unlink()
    assert writer.done(True) == {1, 3}
    writer.finish()
    assert [name for name, *_ in pictures_of(tmp_path, form)] == sorted([name_of(1), name_of(3)])
    assert not writer.parts.exists()


@shard_formats
def test_parts_are_merged_into_shards_of_about_the_size_asked(form, tmp_path, monkeypatch):
    writer = new_set(tmp_path, form)
    for number in range(7):
        writer.commit(f"{number}", [sample(number)], [])
    sizes = [path.stat().st_size for path in writer.parts.glob(f"[0-9]*.{'tar' if form == 'webdataset' else form}")]
    assert 3 * min(sizes) > 2 * max(sizes) + 1
    monkeypatch.setattr("sona_pipeline.data.outlier_writer.SHARD_BYTES", 2 * max(sizes) + 1)
    writer.finish()
    shards = sorted(path.stem for path in (tmp_path / "outliers").iterdir())
    assert shards == ["train-0", "train-3", "train-6"]
    assert [name for name, *_ in pictures_of(tmp_path, form)] == sorted(name_of(n) for n in range(7))


@formats
def test_of_duplicates_the_first_by_file_name_stays_and_the_others_are_listed(form, tmp_path):
    writer = new_set(tmp_path, form)
    writer.commit("a", [sample(8, "same"), sample(2, "other"), sample(7, "same")], [reject(5)])
    writer.commit("b", [sample(4, "same"), sample(6, "other"), sample(1)], [])
    writer.finish(drop_duplicates=True)
    assert [row["stop_step"] for row in table_of(tmp_path)] == [2, 4, 1]
    assert [name for name, *_ in pictures_of(tmp_path, form)] == [name_of(2), name_of(4), name_of(1)]
    reasons = {row["file_name"]: (row["source_key"], row["reason"]) for row in read_rejects(tmp_path)}
    assert reasons == {
        name_of(5): ("key 5", "contrast 0.01 < 0.1"),
        name_of(6): ("key 6", f"looks like {name_of(2)}"),
        name_of(7): ("key 7", f"looks like {name_of(4)}"),
        name_of(8): ("key 8", f"looks like {name_of(4)}"),
    }
    assert [row["file_name"] for row in read_rejects(tmp_path)] == sorted(reasons)
    assert writer.done(True) == {1, 2, 4, 5, 6, 7, 8}


@formats
def test_duplicates_stay_unless_they_are_to_be_dropped(form, tmp_path):
    writer = new_set(tmp_path, form)
    writer.commit("a", [sample(8, "same"), sample(2, "same")], [])
    writer.finish()
    assert [row["stop_step"] for row in table_of(tmp_path)] == [2, 8]
    assert not (tmp_path / "rejects.jsonl").exists()


def test_the_image_list_has_a_line_for_each_outlier_and_no_space_in_a_path(tmp_path):
    writer = new_set(tmp_path, "folder")
    writer.commit("a", [sample(8), sample(3)], [reject(5)])
    writer.finish()
    text = (tmp_path / "outliers.txt").read_text()
    assert text == f"outliers/{name_of(8)} -1\noutliers/{name_of(3)} -1\n"
    images = open_images(tmp_path / "outliers.txt")
    assert [images.image(k).getpixel((0, 0)) for k in range(2)] == [8, 3]


class Killed(BaseException):
    """The end of the process: whatever it wants to do to the disk from now on does not happen."""


def finish_killed_after(steps: int, writer: OutlierWriter, monkeypatch) -> bool:
    """Let `writer` finish, but change the disk `steps` times at most; whether it came to its end."""
    left = steps

    def mortal(change):
        def wrapped(*args, **kwargs):
            nonlocal left
            if not left:
                raise Killed
            left -= 1
            return change(*args, **kwargs)

        return wrapped

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", mortal(os.replace))
        patch.setattr(Path, "unlink", mortal(Path.unlink))
        patch.setattr(Path, "rmdir", mortal(Path.rmdir))
        try:
            writer.finish(drop_duplicates=True)
        except Killed:
            return False
    return True


def half_made_set(folder: Path, form: str) -> OutlierWriter:
    """A set of an earlier run, with new batches, rejects and duplicates that wait to be merged."""
    writer = new_set(folder, form)
    writer.commit("m", [sample(2), sample(4, "same")], [reject(6)])
    writer.finish(drop_duplicates=True)
    writer.commit("z", [sample(10), sample(8, "same")], [])
    writer.commit("a", [sample(12, "same"), sample(5, "twin")], [reject(14)])
    writer.commit("k", [sample(7, "twin"), sample(16)], [])
    writer.commit("c", [], [reject(18)])
    return writer


@pytest.mark.parametrize(
    ("form", "shard_bytes"),
    [("folder", 1), *((form, size) for form in ("parquet", "webdataset") for size in (1, 5000, 1 << 20))],
)
def test_a_finish_that_is_killed_anywhere_can_be_done_again(form, shard_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr("sona_pipeline.data.outlier_writer.SHARD_BYTES", shard_bytes)
    half_made_set(tmp_path / "undisturbed", form).finish(drop_duplicates=True)
    expected = contents(tmp_path / "undisturbed", form)
    assert [row["stop_step"] for row in expected["rows"]] == [2, 4, 10, 16, 5]
    for steps in range(100):
        folder = tmp_path / f"{steps}"
        ended = finish_killed_after(steps, half_made_set(folder, form), monkeypatch)
        made, rejected = ({row["file_name"] for row in read(folder)} for read in (read_rows, read_rejects))
        assert made | rejected == {name_of(n) for n in (2, 4, 5, 6, 7, 8, 10, 12, 14, 16, 18)}
        if not ended:
            OutlierWriter(folder, form).finish(drop_duplicates=True)
        assert contents(folder, form) == expected
        assert not (folder / ".parts").exists()
        if ended:
            break
    assert ended
    assert steps > 10


@formats
@pytest.mark.parametrize("shard_bytes", [1, 5000])
def test_after_a_killed_finish_a_run_may_add_more(form, shard_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr("sona_pipeline.data.outlier_writer.SHARD_BYTES", shard_bytes)

    def with_more(writer: OutlierWriter) -> dict:
        writer.commit("0", [sample(20), sample(21, "same")], [reject(22)])
        writer.commit("b", [sample(23)], [])
        writer.finish(drop_duplicates=True)
        return contents(writer.folder, form)

    expected = with_more(half_made_set(tmp_path / "undisturbed", form))
    for steps in range(100):
        ended = finish_killed_after(steps, half_made_set(tmp_path / f"{steps}", form), monkeypatch)
        assert with_more(OutlierWriter(tmp_path / f"{steps}", form)) == expected
        if ended:
            break
    assert ended


@formats
def test_a_finish_may_be_killed_again_and_again(form, tmp_path, monkeypatch):
    monkeypatch.setattr("sona_pipeline.data.outlier_writer.SHARD_BYTES", 1)
    half_made_set(tmp_path / "undisturbed", form).finish(drop_duplicates=True)
    half_made_set(tmp_path / "disturbed", form)
    kills = 0
    while not finish_killed_after(kills, OutlierWriter(tmp_path / "disturbed", form), monkeypatch):
        kills += 1
        assert kills < 100
    assert contents(tmp_path / "disturbed", form) == contents(tmp_path / "undisturbed", form)


@shard_formats
def test_an_outlier_that_was_merged_before_stays(form, tmp_path):
    writer = new_set(tmp_path, form)
    writer.commit("a", [sample(8, "same"), sample(2)], [])
    writer.finish(drop_duplicates=True)
    writer.commit("b", [sample(4, "same")], [])
    writer.finish(drop_duplicates=True)
    assert [row["stop_step"] for row in table_of(tmp_path)] == [2, 8]
    assert [name for name, *_ in pictures_of(tmp_path, form)] == [name_of(2), name_of(8)]


@shard_formats
def test_a_run_with_nothing_but_duplicates_leaves_the_set_readable(form, tmp_path):
    writer = new_set(tmp_path, form)
    writer.commit("m", [sample(2, "same")], [])
    writer.finish(drop_duplicates=True)
    writer.commit("a", [sample(4, "same")], [])
    writer.finish(drop_duplicates=True)
    outliers, _ = open_outliers(tmp_path, [name_of(2)])
    assert outliers.image(0).getpixel((0, 0)) == 2


@shard_formats
def test_duplicates_across_shards_survive_a_kill_between_them(form, tmp_path, monkeypatch):
    """The one that stays lies in the later part; without the rejects on the disk both would be dropped."""
    monkeypatch.setattr("sona_pipeline.data.outlier_writer.SHARD_BYTES", 1)

    def two_parts(folder: Path) -> OutlierWriter:
        writer = new_set(folder, form)
        writer.commit("p1", [sample(5, "same"), sample(7)], [])
        writer.commit("p2", [sample(3, "same"), sample(9)], [])
        return writer

    two_parts(tmp_path / "undisturbed").finish(drop_duplicates=True)
    assert [row["stop_step"] for row in table_of(tmp_path / "undisturbed")] == [3, 7, 9]
    two_parts(tmp_path / "killed")
    for kills in range(100):
        if finish_killed_after(kills, OutlierWriter(tmp_path / "killed", form), monkeypatch):
            break
    assert contents(tmp_path / "killed", form) == contents(tmp_path / "undisturbed", form)
