"""Parts that are made apart make the very set of one run together."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, strategies as st
from PIL import Image

from sona_pipeline.data import sample
from sona_pipeline.data.image_set import ImageSet
from sona_pipeline.data.outlier_set import open_outlier_set, read_rows, read_samples
from sona_pipeline.data.parts import Part, merge_parts
from sona_pipeline.generation.checkpoint import load_pipeline
from sona_pipeline.generation.estimate import described, estimate
from sona_pipeline.generation.generate import generate_outliers, make_plan
from sona_pipeline.generation.parts import share_of
from sona_pipeline.generation.plan import plan_outliers
from sona_pipeline.generation.settings import GenerationSettings, OutputSettings

SETTINGS = GenerationSettings(ood_labels=("bag", "sandal"), num_inference_steps=4)
WRITING = OutputSettings(batch_size=2)
TOTAL = 3


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline("tiny", "cpu")


@pytest.fixture(scope="module")
def images():
    return sample.id_images("train").take(range(11))


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a set but the lock."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def made_in_parts(images, pipe, root: Path, settings=SETTINGS, writing=WRITING, total: int = TOTAL) -> list[Path]:
    folders = [root / f"part {number}" for number in range(1, total + 1)]
    for number, folder in enumerate(folders, start=1):
        generate_outliers(images, pipe, folder, settings, replace(writing, part=f"{number}/{total}"))
    return folders


@pytest.fixture(scope="module")
def parts(images, pipe, tmp_path_factory) -> list[Path]:
    """Parts of a set of image folders, to be read only."""
    return made_in_parts(images, pipe, tmp_path_factory.mktemp("parts"))


@pytest.mark.parametrize("form", ["folder", "parquet", "webdataset"])
def test_parts_make_the_very_files_of_one_run(images, pipe, tmp_path, monkeypatch, form):
    monkeypatch.setattr("sona_pipeline.data.outlier_writer.SHARD_BYTES", 9000)
    writing = replace(WRITING, format=form)
    generate_outliers(images, pipe, tmp_path / "one", SETTINGS, writing)
    parts = made_in_parts(images, pipe, tmp_path, writing=writing)
    before = {part: contents(part) for part in parts}
    assert merge_parts([parts[k] for k in (2, 0, 1)], tmp_path / "merged") == 11
    assert contents(tmp_path / "merged") == contents(tmp_path / "one")
    assert form == "folder" or len(list((tmp_path / "merged" / "outliers").iterdir())) > 1
    assert {part: contents(part) for part in parts} == before


@given(count=st.integers(0, 60), size=st.integers(1, 9), total=st.integers(1, 12))
def test_shares_have_every_batch_of_the_plan_once_and_unchanged(count, size, total):
    keys = tuple(f"image {k}" for k in range(count + 1))
    images = ImageSet(keys, (0,) * len(keys), ("shirt",), lambda _: Image.new("L", (8, 8)))
    plan = plan_outliers(images, replace(SETTINGS, num_inference_steps=7))
    shares = [share_of(plan, Part(number, total), size) for number in range(1, total + 1)]
    items = {plan.images.keys[item.index]: item for item in plan}
    found = {}
    for share in shares:
        for item in share:
            key = share.images.keys[item.index]
            assert key not in found
            found[key] = item
            assert replace(item, index=0) == replace(items[key], index=0)
    assert found.keys() == items.keys()
    batches = {batch.name: {plan.images.keys[k] for k in batch.indices} for batch in plan.batches(size)}
    shared = [
        (batch.name, {share.images.keys[k] for k in batch.indices}) for share in shares for batch in share.batches(size)
    ]
    assert len(shared) == len(batches) and dict(shared) == batches


def test_parts_of_one_are_the_whole_and_parts_may_be_empty(images, pipe, tmp_path):
    generate_outliers(images.take(range(3)), pipe, tmp_path / "one", SETTINGS, WRITING)
    for total in (1, 4):
        parts = made_in_parts(images.take(range(3)), pipe, tmp_path / str(total), total=total)
        merge_parts(parts, tmp_path / f"merged {total}")
        assert contents(tmp_path / f"merged {total}") == contents(tmp_path / "one")


@pytest.mark.parametrize("form", ["folder", "parquet"])
def test_duplicates_across_parts_are_dropped_as_one_run_drops_them(pipe, tmp_path, form):
    picture = sample.id_images("train").image(0)
    images = ImageSet(tuple("abcdefgh"), (0,) * 8, ("shirt",), lambda _: picture)
    settings = replace(SETTINGS, drop_duplicates=True, num_inference_steps=1, guidance_scale=0.0)
    writing = OutputSettings(batch_size=1, format=form)
    generate_outliers(images, pipe, tmp_path / "one", settings, writing)
    parts = made_in_parts(images, pipe, tmp_path, settings, writing)
    assert merge_parts(parts, tmp_path / "merged") == len(list(read_rows(tmp_path / "one"))) < 8
    assert contents(tmp_path / "merged") == contents(tmp_path / "one")


def test_rejects_come_along(images, pipe, tmp_path):
    def open_image(index):
        if index == 4:
            raise OSError("image 4 cannot be read as an image")
        return images.image(index)

    broken = ImageSet(images.keys, images.labels, images.classes, open_image)
    settings = replace(SETTINGS, reject=("contrast<0.2",))
    generate_outliers(broken, pipe, tmp_path / "one", settings, WRITING)
    parts = made_in_parts(broken, pipe, tmp_path, settings)
    merge_parts(parts, tmp_path / "merged")
    assert contents(tmp_path / "merged") == contents(tmp_path / "one")
    assert (tmp_path / "merged" / "rejects.jsonl").exists()


def test_a_second_merger_adds_nothing_and_one_that_was_killed_is_finished(parts, tmp_path, monkeypatch):
    merge_parts(parts, tmp_path / "whole")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "whole").rglob("*") if path.is_file()}
    merge_parts(parts, tmp_path / "whole")
    times.pop(tmp_path / "whole" / ".lock")
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())

    from sona_pipeline.data.outlier_writer import OutlierWriter

    commit, left = OutlierWriter.commit, [3]

    def mortal(self, *batch):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        commit(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(OutlierWriter, "commit", mortal)
        with pytest.raises(KeyboardInterrupt):
            merge_parts(parts, tmp_path / "killed")
    assert 0 < len(list(read_rows(tmp_path / "killed"))) < 11
    merge_parts(parts, tmp_path / "killed")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_the_merged_set_opens_like_any_other(parts, images, tmp_path):
    merge_parts(parts, tmp_path)
    pairs = open_outlier_set(tmp_path, images)
    assert pairs.images.keys == images.keys
    assert np.asarray(pairs.outliers.image(0)).shape == (32, 32)


def test_a_part_is_read_as_far_as_it_goes_and_is_no_set_to_publish(parts):
    assert sum(len(list(read_rows(part))) for part in parts) == 11
    with pytest.raises(ValueError, match="is a part of a set: join all parts by `sona merge` first"):
        read_samples(parts[0])


def test_a_dry_run_tells_the_share(images, pipe):
    writing = replace(WRITING, part="2/3")
    plan = make_plan(images, pipe, SETTINGS, writing)
    cost = estimate(plan, pipe, Path(), 2, writing)
    whole = plan_outliers(images, SETTINGS)
    assert 0 < cost.images < 11 and cost.unet_rows < whole.unet_rows
    part, count, *_ = described(plan, cost, writing.part, preset="paper", scheduler="ddim")
    assert part == "Part:       2/3" and f"{cost.images} of " in count


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("0/3", "there is no part 0/3: parts are counted from 1/N to N/N"),
        ("4/3", "there is no part 4/3"),
        ("1/0", "there is no part 1/0"),
        ("2", "the part is '2', but has to be I/N, such as 2/8"),
        ("1/3/5", "has to be I/N"),
        ("-1/3", "has to be I/N"),
        ("a/b", "has to be I/N"),
        ("1/99999999999999999999", "has to be I/N"),
    ],
)
def test_parts_that_there_are_not_are_refused_before_anything_is_written(images, pipe, tmp_path, part, message):
    with pytest.raises(ValueError, match=message):
        generate_outliers(images, pipe, tmp_path / "set", SETTINGS, replace(WRITING, part=part))
    assert not (tmp_path / "set").exists()


def test_a_part_needs_a_batch_size_in_numbers(images, pipe, tmp_path):
    with pytest.raises(ValueError, match="part 1/2 needs a batch size that all parts have in common"):
        generate_outliers(images, pipe, tmp_path / "set", SETTINGS, OutputSettings(batch_size="auto", part="1/2"))


def test_a_part_goes_on_as_the_same_part_of_the_same_images_only(parts, images, pipe, tmp_path):
    folder = shutil.copytree(parts[0], tmp_path / "part")
    for part, size, message in (
        ("2/3", 2, "part .'1/3' then, '2/3' now"),
        (None, 2, "part .'1/3' then, None now"),
        ("1/3", 3, "batch_size .2 then, 3 now"),
    ):
        with pytest.raises(ValueError, match=message):
            generate_outliers(images, pipe, folder, SETTINGS, OutputSettings(batch_size=size, part=part))
    with pytest.raises(ValueError, match=r"images \("):
        generate_outliers(images.take(range(9)), pipe, folder, SETTINGS, replace(WRITING, part="1/3"))
    assert contents(folder) == contents(parts[0])


def changed(source: Path, place: Path, **settings) -> Path:
    """A copy of a part with other settings."""
    folder = shutil.copytree(source, place)
    content = json.loads((folder / "settings.json").read_text())
    (folder / "settings.json").write_text(json.dumps(content | settings))
    return folder


def test_parts_that_do_not_make_a_set_are_refused_before_anything_is_written(parts, images, pipe, tmp_path):
    one, two, three = parts
    generate_outliers(images.take(range(2)), pipe, tmp_path / "whole", SETTINGS, WRITING)
    unfinished = changed(two, tmp_path / "unfinished")
    (unfinished / "manifest.json").unlink()
    torn = changed(two, tmp_path / "torn")
    next((torn / ".parts").glob("*.jsonl")).unlink()
    for places, message in (
        ([one, three], "part 2/3 is missing: give the folders of all 3 parts"),
        ([two], "parts 1/3, 3/3 are missing"),
        ([one, two, two, three], r"part 2 is given twice: give it once"),
        ([one, two, three, changed(two, tmp_path / "again")], "are both part 2/3: give one of them"),
        ([one, tmp_path / "whole"], "is a whole set and no part"),
        ([one, tmp_path / "nowhere"], "is not a set made by `sona generate`"),
        ([one, changed(two, tmp_path / "more", part="2/4"), three], "is one of 3 parts and .* one of 4"),
        ([one, changed(two, tmp_path / "seed", seed=9), three], "the same seed, but it is 0 in .* and 9 in .*"),
        ([one, changed(two, tmp_path / "model", images="x"), three], "the same images"),
        ([one, unfinished, three], "part 2/3, is not finished: let the same `sona generate` go on"),
        ([one, torn, three], "part 2/3, lacks 1 of its batches"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            merge_parts(places, tmp_path / "merged")
        assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("harm", ["gone", "short", "other"])
def test_a_damaged_picture_is_told_and_the_merger_goes_on_when_it_is_mended(parts, images, pipe, tmp_path, harm):
    broken = shutil.copytree(parts[1], tmp_path / "broken")
    picture = next((broken / "outliers").rglob("*.png"))
    content = picture.read_bytes()
    if harm == "gone":
        picture.unlink()
    else:
        picture.write_bytes(content[:-10] if harm == "short" else content[:-1] + b"x")
    with pytest.raises(ValueError, match=r"batch \w+ of .*broken (is damaged|cannot be read).*: make the part again"):
        merge_parts([parts[0], broken, parts[2]], tmp_path / "merged")
    picture.unlink(missing_ok=True)
    generate_outliers(images, pipe, broken, SETTINGS, replace(WRITING, part="2/3"))
    merge_parts([parts[0], broken, parts[2]], tmp_path / "merged")
    merge_parts(parts, tmp_path / "undisturbed")
    assert contents(tmp_path / "merged") == contents(tmp_path / "undisturbed")


def test_other_settings_in_the_place_of_the_merged_set_are_refused(parts, images, pipe, tmp_path):
    generate_outliers(images, pipe, tmp_path / "set", replace(SETTINGS, seed=5), WRITING)
    with pytest.raises(ValueError, match=r"was made with other settings: seed \(5 then, 0 now\)"):
        merge_parts(parts, tmp_path / "set")


def test_parts_of_a_blend_have_the_meanings_of_the_whole(pipe):
    images = sample.id_images("train").take(range(0, 1500, 50))
    settings = GenerationSettings(("bag", "sandal"), num_inference_steps=2, blend="classes")
    whole = {item.file_name: item for item in make_plan(images, pipe, settings)}
    for part in ("1/2", "2/2"):
        plan = make_plan(images, pipe, settings, OutputSettings(part=part, batch_size=4))
        assert len(plan) and all(item.meanings == whole[item.file_name].meanings for item in plan)
