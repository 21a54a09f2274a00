"""Whatever a loss of power leaves, the next run makes the set of an undisturbed one of it."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from power import Names, Recorder, Sync

from sona_pipeline.common.files import only_run, png, settle_settings
from sona_pipeline.data import sample as bundled
from sona_pipeline.data.outlier_writer import OutlierWriter
from sona_pipeline.data.shards import Sample
from sona_pipeline.generation.checkpoint import load_pipeline
from sona_pipeline.generation.generate import generate_outliers
from sona_pipeline.generation.settings import GenerationSettings, OutputSettings

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="files are told by Linux' /proc")
SETTINGS = {"ood_labels": ["bag"], "reconstructions": True, "num_inference_steps": 50}
BATCHES = {"a": (2, 4), "c": (7, 9, 8), "d": (11,), "m": (14, 16), "z": (20, 22)}
"""Batches of a set with the numbers of their images."""
REJECTED, TWIN_OF = {9}, {16: 14, 20: 7}
"""Images of which there is no outlier, and those whose outlier looks like another's."""


def name_of(number: int) -> str:
    return f"{'cat' if number % 3 else 'dog'}/{number:016x}.png"


def sample(number: int) -> Sample:
    mark = f"{TWIN_OF.get(number, number):016x}"
    row = {"file_name": name_of(number), "source_key": f"key {number}", "stop_step": number, "fingerprint": mark}
    outlier, other = (png(Image.new("L", (4, 4), shade)) for shade in (number, number + 1))
    return Sample(row, outlier, other)


def run(folder: Path, form: str) -> None:
    """What a run does: it settles, asks what is done, commits what is missing, and finishes."""
    writer = OutlierWriter(folder, form)
    with only_run(folder):
        writer.discard()
        settle_settings(folder / "settings.json", SETTINGS | {"format": form})
        done = writer.done(True)
        for name, numbers in BATCHES.items():
            left = [number for number in numbers if number not in done]
            rejects = [
                {"file_name": name_of(number), "source_key": f"key {number}", "reason": "contrast 0 < 1"}
                for number in left
                if number in REJECTED
            ]
            if left:
                writer.commit(name, [sample(number) for number in left if number not in REJECTED], rejects)
        writer.finish(drop_duplicates=True)


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the lock, and what the next run takes away."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock" and path.parent.name != ".merged"
    }


def check_every_loss(disk: Recorder, place: Path, again: Callable[[Path], None], expected: dict) -> None:
    """Lose the power after every change and every sync, and see to what the next run comes."""
    for moment in range(len(disk.log) + 1):
        folder = place / f"{moment}"
        disk.after_loss(moment, random.Random(moment), folder)
        again(folder / "set")
        assert contents(folder / "set") == expected, f"loss after {disk.log[:moment][-3:]}"
        shutil.rmtree(folder)


@pytest.fixture
def root(tmp_path) -> Path:
    (tmp_path / "disk").mkdir()
    return tmp_path / "disk"


@pytest.mark.parametrize(
    ("form", "shard_bytes"), [("folder", 1), ("parquet", 1), ("parquet", 5000), ("webdataset", 5000)]
)
def test_a_set_is_whole_again_after_a_loss_at_any_moment(form, shard_bytes, root, tmp_path, monkeypatch):
    monkeypatch.setattr("sona_pipeline.data.outlier_writer.SHARD_BYTES", shard_bytes)
    with Recorder(root) as disk:
        run(root / "set", form)
    expected = contents(root / "set")
    disk.after_loss(len(disk.log), random.Random(0), tmp_path / "end")
    assert contents(tmp_path / "end" / "set") == expected
    check_every_loss(disk, tmp_path, lambda folder: run(folder, form), expected)


def test_without_the_syncs_a_loss_does_harm(root, tmp_path):
    """What the other tests would see if nothing were brought to the disk."""
    with Recorder(root) as disk:
        run(root / "set", "folder")
    expected = contents(root / "set")
    disk.log = [entry for entry in disk.log if isinstance(entry, Names)]
    with pytest.raises((AssertionError, ValueError, OSError)):
        check_every_loss(disk, tmp_path, lambda folder: run(folder, "folder"), expected)


def test_files_are_synced_before_they_get_their_names_and_folders_after(root):
    with Recorder(root) as disk:
        run(root / "set", "folder")
    seen, pending = set[int](), dict[int, dict]()
    for entry in disk.log:
        if isinstance(entry, Sync):
            seen.add(entry.what)
            pending.pop(entry.what, None)
            continue
        is_row = any(name.endswith(".jsonl") for name in entry.changed)
        assert not is_row or not {f for f in pending if f != entry.folder}, "a row came before its pictures"
        files = {number for number in entry.changed.values() if number is not None and disk.is_file(number)}
        assert files <= seen
        pending.setdefault(entry.folder, {}).update(entry.changed)


def test_a_generation_goes_on_after_a_loss(root, tmp_path):
    pipe, images = load_pipeline("tiny", "cpu"), bundled.id_images("train").take(range(6))
    settings = GenerationSettings(ood_labels=("bag", "sandal"), num_inference_steps=1)

    def generate(folder: Path) -> None:
        generate_outliers(images, pipe, folder, settings, OutputSettings(batch_size=2))

    with Recorder(root) as disk:
        generate(root / "set")
    expected = contents(root / "set")
    for moment in random.Random(0).sample(range(len(disk.log)), 6):
        disk.after_loss(moment, random.Random(moment), tmp_path / f"{moment}")
        generate(tmp_path / f"{moment}" / "set")
        assert contents(tmp_path / f"{moment}" / "set") == expected
