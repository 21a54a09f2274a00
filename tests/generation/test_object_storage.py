"""Outlier sets at an address: the very set that a folder gets, also after kills in the midst of uploads."""

import json
import random
import sys
import time
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
from loopback_s3 import BUCKET, LoopbackS3, without_credentials
from warm_runs import Run

from sona_pipeline.cli.app import main
from sona_pipeline.common.files import digest
from sona_pipeline.data import outlier_writer, sample
from sona_pipeline.data.outlier_set import open_outlier_set, read_rejects, read_rows, read_samples, read_settings
from sona_pipeline.data.parts import merge_parts
from sona_pipeline.data.uploads import writer_to
from sona_pipeline.generation.checkpoint import load_pipeline
from sona_pipeline.generation.generate import generate_outliers
from sona_pipeline.generation.inspection import inspect_outliers
from sona_pipeline.generation.settings import GenerationSettings, OutputSettings

SETTINGS = GenerationSettings(ood_labels=("bag", "sandal"), num_inference_steps=4, reject=("contrast<0.2",))
WRITING = OutputSettings(format="parquet", batch_size=2)
SMALL = 5000
"""Bytes of a shard, so that there are several."""
forms = pytest.mark.parametrize("form", ["parquet", "webdataset"])


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline("tiny", "cpu")


@pytest.fixture(scope="module")
def images():
    return sample.id_images("train").take(range(12))


@pytest.fixture(scope="module")
def s3():
    with LoopbackS3() as server:
        yield server


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """Copies of sets in a place of their own, and small shards."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("sona_pipeline.data.outlier_writer.SHARD_BYTES", SMALL)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


def uploaded(s3: LoopbackS3, name: str) -> dict[str, bytes]:
    """What a finished set has at its address, without what only a resume needs."""
    files = s3.files(f"{name}/")
    assert json.loads(files.pop("manifest.json"))["finished"]
    return {place: content for place, content in files.items() if not place.startswith(".parts/")}


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@forms
def test_an_address_gets_the_very_files_of_a_folder(images, pipe, s3, tmp_path, form):
    writing = replace(WRITING, format=form)
    generate_outliers(images, pipe, tmp_path / "set", SETTINGS, writing)
    generate_outliers(images, pipe, f"s3://{BUCKET}/{form}", SETTINGS, writing)
    expected = contents(tmp_path / "set")
    assert uploaded(s3, form) == expected
    assert len([name for name in expected if name.startswith("outliers/")]) > 2
    assert "rejects.jsonl" in expected


def test_the_manifest_says_what_is_there(images, pipe, s3):
    generate_outliers(images, pipe, f"s3://{BUCKET}/listed", SETTINGS, WRITING)
    files = s3.files("listed/")
    manifest = json.loads(files["manifest.json"])
    shards = [entry for entry in manifest["shards"] if "shard" in entry]
    assert {entry["shard"] for entry in shards} == {name for name in files if name.startswith("outliers/")}
    assert all(len(files[entry["shard"]]) == entry["bytes"] for entry in shards)
    rows = files["metadata.jsonl"].splitlines()
    assert sum(sum(entry["batches"].values()) for entry in manifest["shards"]) == len(rows)
    table = datasets.load_dataset("parquet", data_files=f"s3://{BUCKET}/listed/outliers/*.parquet", split="train")
    assert sorted(table["file_name"]) == [json.loads(row)["file_name"] for row in rows]


@forms
def test_a_set_at_an_address_is_read_like_any_other(images, pipe, s3, tmp_path, form):
    address, writing = f"s3://{BUCKET}/read-{form}", replace(WRITING, format=form)
    generate_outliers(images, pipe, tmp_path / "set", SETTINGS, writing)
    generate_outliers(images, pipe, address, SETTINGS, writing)
    assert read_settings(address) == read_settings(tmp_path / "set")
    assert sorted(map(str, read_rows(address))) == sorted(map(str, read_rows(tmp_path / "set")))
    assert sorted(map(str, read_rejects(address))) == sorted(map(str, read_rejects(tmp_path / "set")))
    assert sorted(s.outlier for s in read_samples(address)) == sorted(s.outlier for s in read_samples(tmp_path / "set"))
    here, there = (open_outlier_set(place, images) for place in (tmp_path / "set", Path(address)))
    assert here.images.keys == there.images.keys and here.strengths == there.strengths
    for index in range(len(here.images)):
        for kind in ("outliers", "reconstructions"):
            one, other = (np.asarray(getattr(pairs, kind).image(index)) for pairs in (here, there))
            assert (one == other).all()
    assert len(inspect_outliers(address).rows) == len(here.images)


def test_a_second_run_uploads_no_shard_and_more_images_are_added(images, pipe, s3, tmp_path):
    address = f"s3://{BUCKET}/grown"
    generate_outliers(images.take(range(5)), pipe, address, SETTINGS, WRITING)
    before = s3.files("grown/")
    generate_outliers(images.take(range(5)), pipe, address, SETTINGS, WRITING)
    assert s3.files("grown/") == before
    generate_outliers(images, pipe, address, SETTINGS, WRITING)
    generate_outliers(images, pipe, tmp_path / "set", SETTINGS, WRITING)
    assert uploaded(s3, "grown")["metadata.jsonl"] == (tmp_path / "set" / "metadata.jsonl").read_bytes()
    assert len(open_outlier_set(address, images).images) == len(list(read_rows(tmp_path / "set")))


@forms
def test_parts_at_addresses_are_joined_here_and_there(images, pipe, s3, tmp_path, form):
    writing = replace(WRITING, format=form)
    generate_outliers(images, pipe, tmp_path / "one", SETTINGS, writing)
    parts = [f"s3://{BUCKET}/parts-{form}/{number}" for number in (1, 2)] + [str(tmp_path / "third")]
    for number, place in enumerate(parts, start=1):
        generate_outliers(images, pipe, place, SETTINGS, replace(writing, part=f"{number}/3"))
    merge_parts(parts, tmp_path / "merged")
    assert contents(tmp_path / "merged") == contents(tmp_path / "one")
    merge_parts(parts, f"s3://{BUCKET}/merged-{form}")
    assert uploaded(s3, f"merged-{form}") == contents(tmp_path / "one")


def test_a_shard_that_is_cut_short_is_told(images, pipe, s3):
    address = f"s3://{BUCKET}/short"
    generate_outliers(images, pipe, address, SETTINGS, WRITING)
    shard = next(name for name in s3.files("short/") if name.startswith("outliers/"))
    s3.put(f"short/{shard}", s3.files("short/")[shard][:-100])
    with pytest.raises(ValueError, match=rf"{address}/{shard} is damaged or cut short"):
        open_outlier_set(address, images)


def test_a_set_that_was_made_anew_is_copied_anew(images, pipe, s3):
    address = f"s3://{BUCKET}/anew"
    for seed in (0, 1):
        for name in s3.files("anew/"):
            s3.delete(f"anew/{name}")
        settings = replace(SETTINGS, seed=seed)
        generate_outliers(images, pipe, address, settings, WRITING)
        files = s3.files("anew/")
        assert sorted(map(json.dumps, read_rows(address))) == sorted(files["metadata.jsonl"].decode().splitlines())
        assert {digest(one.outlier) for one in read_samples(address)} == {row["sha256"] for row in read_rows(address)}


def test_of_two_runs_at_one_address_one_stops(images, pipe, s3):
    """The second begins when the first has uploaded nothing yet, and is done before it."""
    address = f"s3://{BUCKET}/both"
    with writer_to(address, "parquet") as first:
        generate_outliers(images.take(range(4)), pipe, address, SETTINGS, WRITING)
        before = s3.files("both/")
        first.commit("00000000", [], [{"file_name": "a/1.png", "source_key": "a", "reason": "contrast 0.01 < 0.1"}])
        with pytest.raises(BlockingIOError, match=f"another run is writing to {address}: wait for its end"):
            first.finish()
    assert s3.files("both/") == before


def test_a_batch_that_is_made_again_takes_nothing_from_the_run_before(s3):
    """Images that could not be had come back as a batch of the same images, and so of the same name."""
    address, lost = f"s3://{BUCKET}/again", {"file_name": "a/1.png", "source_key": "a", "reason": "gone"}
    other, batches = lost | {"file_name": "a/2.png", "reason": "torn"}, []
    for rejects in ({"b1": lost | {"may_pass": True}, "b2": other}, {"b1": lost | {"reason": "empty"}}):
        with writer_to(address, "parquet") as writer:
            (writer.folder / "settings.json").write_text('{"ood_labels": [], "format": "parquet"}')
            for name, reject in rejects.items():
                writer.commit(name, [], [reject])
            writer.finish()
        found = [json.loads(line) for line in s3.files("again/")["rejects.jsonl"].splitlines()]
        batches.append({row["file_name"]: row["reason"] for row in found})
    assert batches == [{"a/1.png": "gone", "a/2.png": "torn"}, {"a/1.png": "empty", "a/2.png": "torn"}]
    entries = json.loads(s3.files("again/")["manifest.json"])["shards"]
    assert [digest(s3.files("again/")[entry["table"]]) for entry in entries] == [e["table_sha256"] for e in entries]


@pytest.mark.parametrize(
    ("address", "writing", "error", "message"),
    [
        ("s3://no-such-bucket/set", WRITING, FileNotFoundError, "no-such-bucket/.* does not exist: check bucket"),
        (f"s3://{BUCKET}/set", OutputSettings(), ValueError, "takes a set by whole shards: choose --format parquet or"),
        ("nfs3://host/set", WRITING, ValueError, "protocol 'nfs3', which is not known"),
        ("gs://bucket/set", WRITING, ValueError, r'pip install "sona-pipeline\[gcs\]"'),
    ],
)
def test_addresses_that_take_no_set_are_refused_at_once(images, s3, monkeypatch, address, writing, error, message):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(error, match=message):
        generate_outliers(images, None, address, SETTINGS, writing)  # type: ignore[arg-type] # it is not asked


def test_duplicates_cannot_be_dropped_from_what_is_uploaded(images, s3):
    with pytest.raises(ValueError, match="no duplicates can be dropped at the end"):
        generate_outliers(images, None, f"s3://{BUCKET}/set", replace(SETTINGS, drop_duplicates=True), WRITING)


def test_an_address_without_credentials_is_refused_at_once(images, s3, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with without_credentials(), pytest.raises(PermissionError, match="takes credentials that are missing"):
        generate_outliers(images, None, f"s3://{BUCKET}/set", SETTINGS, WRITING)


def take_small_shards() -> None:
    outlier_writer.SHARD_BYTES = SMALL


def test_runs_killed_in_the_midst_of_uploads_end_with_the_set_of_an_undisturbed_run(s3, tmp_path):
    """What is killed is a process; the manifest only grows, and every shard in it stays as it is."""
    data = str(Path(__file__).parents[2] / "sona_pipeline" / "assets" / "sample" / "train.parquet")
    options = ["--model", "tiny", "--steps", "4", "--limit", "24", "--batch-size", "2", "--format", "parquet"]
    chance = random.Random(0)

    def start(output: str) -> Run:
        command = ["generate", "--data", data, "--output", output, *options]
        return Run(command, environment=s3.environment, prepare=take_small_shards)

    def shards() -> list[dict]:
        return json.loads(s3.get("killed/manifest.json") or '{"shards": []}')["shards"]

    seen: list[dict] = []
    for more in (1, 2):
        run, deadline = start(f"s3://{BUCKET}/killed"), time.monotonic() + 180
        while len(shards()) < len(seen) + more:
            assert run.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.2))
        run.kill()
        assert shards()[: len(seen)] == seen
        seen = shards()
    assert start(f"s3://{BUCKET}/killed").wait() == 0
    assert shards()[: len(seen)] == seen
    main(["generate", "--data", data, "--output", str(tmp_path / "undisturbed"), *options])
    found, expected = uploaded(s3, "killed"), contents(tmp_path / "undisturbed")
    for files in (found, expected):
        files["settings.json"] = json.loads(files["settings.json"]) | {"notes": None}
    assert found == expected
