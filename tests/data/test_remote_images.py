"""Images at addresses: what is read there is what is read from the same files on this machine."""

import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import fsspec
import numpy as np
import pytest
import webdataset
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem
from loopback_hub import LoopbackHub
from loopback_s3 import BUCKET, LoopbackS3, without_credentials
from PIL import Image
from warm_python import fresh_python

from sona_pipeline.data.image_set import ImageSet, check_there
from sona_pipeline.data.images import open_images
from sona_pipeline.data.remote import UnreachableError

CLASSES = ("cat", "sea lion")
COUNT = 12


def picture(number: int) -> Image.Image:
    return Image.new("RGB", (6, 4), (20 * number, 255 - 20 * number, number))


def encoded(number: int) -> bytes:
    content = io.BytesIO()
    picture(number).save(content, "PNG")
    return content.getvalue()


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """The same images in every form: `folder`, `splits`, `parquet`, `tars`."""
    root = tmp_path_factory.mktemp("dâta 数据")
    for number in range(COUNT):
        name = f"{CLASSES[number % 2]}/{number:02d} ø.png"
        for path in (root / "folder" / name, root / "splits" / ("val" if number < 4 else "train") / name):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(number))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    for shard in range(2):
        numbers = range(shard, COUNT, 2)
        rows = {
            "image": [{"bytes": encoded(n), "path": None} for n in numbers],
            "label": [n % 2 for n in numbers],
        }
        (root / "parquet").mkdir(exist_ok=True)
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(root / "parquet" / f"train-{shard:05d}-of-00002.parquet", batch_size=4)
    (root / "tars").mkdir()
    with webdataset.ShardWriter(f"{root}/tars/train-%03d.tar", maxcount=5, verbose=0) as writer:
        for number in range(COUNT):
            sample = {"__key__": f"s{number:03d}", "png": encoded(number), "cls": number % 2}
            writer.write(sample | {"json": {"name": CLASSES[number % 2]}})
    return root


@pytest.fixture(scope="module")
def s3(root):
    with LoopbackS3() as server:
        for path in root.rglob("*"):
            if path.is_file():
                server.put(path.relative_to(root).as_posix(), path.read_bytes())
        yield server


def assert_same(one: ImageSet, other: ImageSet) -> None:
    assert (one.keys, one.labels, one.classes) == (other.keys, other.labels, other.classes)
    for index in range(len(one)):
        assert (np.asarray(one.image(index)) == np.asarray(other.image(index))).all()


@pytest.mark.parametrize("form", ["folder", "parquet", "tars"])
def test_an_address_has_the_images_of_the_same_files_here(root, s3, form):
    here = open_images(root / form, labelled=True)
    assert len(here) == COUNT
    assert_same(open_images(f"s3://{BUCKET}/{form}", labelled=True), here)
    assert_same(open_images(f"s3://{BUCKET}/{form}/", labelled=True), here)
    assert_same(open_images(f"file://{root}/{form}", labelled=True), here)


def in_memory(folder: Path, name: str) -> str:
    """The address of what a folder holds."""
    files = fsspec.filesystem("memory")
    for path in folder.rglob("*.*"):
        files.pipe_file(f"/{name}/{path.relative_to(folder).as_posix()}", path.read_bytes())
    return f"memory://{name}"


def test_memory_is_an_address(root):
    assert_same(open_images(in_memory(root / "folder", "set")), open_images(root / "folder"))


def test_many_threads_read_the_rows_of_a_table_together(root, tmp_path):
    rows = {"image": [{"bytes": encoded(n % COUNT), "path": None} for n in range(400)], "label": [0] * 400}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat"])})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet", batch_size=20)
    address = in_memory(tmp_path, "threads")
    for _ in range(3):
        images = open_images(address, labelled=True)
        with ThreadPoolExecutor(8) as pool:
            found = [image.getpixel((0, 0)) for image in pool.map(images.image, range(400))]
        assert found == [picture(n % COUNT).getpixel((0, 0)) for n in range(400)]


@pytest.mark.parametrize("form", ["folder", "parquet", "tars"])
def test_a_connection_that_breaks_is_no_fault_of_an_image(root, monkeypatch, form):
    def broken(*_):
        raise ConnectionResetError("by peer")

    images = open_images(in_memory(root / form, f"breaks-{form}"), labelled=True)
    monkeypatch.setattr(MemoryFile, "read", broken)
    monkeypatch.setattr(MemoryFileSystem, "cat_file", lambda *_, **__: broken())
    with pytest.raises(UnreachableError, match=r"memory://breaks-.* cannot be reached .*by peer") as raised:
        images.image(COUNT - 1)
    assert pickle.loads(pickle.dumps(raised.value)).errno
    with pytest.raises(OSError, match="cannot be reached"):
        open_images(f"memory://breaks-{form}", labelled=True).image(0)


def test_splits_at_an_address(root, s3):
    for split in ("train", "validation"):
        assert_same(open_images(f"s3://{BUCKET}/splits", split=split), open_images(root / "splits", split=split))
    with pytest.raises(ValueError, match=r"has no split 'test'; its splits are \['train', 'validation'\]"):
        open_images(f"s3://{BUCKET}/splits", split="test")


def test_one_file_and_a_star_are_addresses_too(root, s3):
    one = open_images(f"s3://{BUCKET}/parquet/train-00001-of-00002.parquet")
    assert_same(one, open_images(root / "parquet" / "train-00001-of-00002.parquet"))
    assert_same(open_images(f"s3://{BUCKET}/tars/train-*.tar"), open_images(root / "tars"))
    assert_same(open_images(f"s3://{BUCKET}/tars/train-001.tar"), open_images(root / "tars" / "train-001.tar"))


ON_THE_HUB = """
import hashlib, json
from sona_pipeline.data.images import open_images
images = open_images("hf://datasets/user/photos", labelled=True)
digests = [hashlib.sha256(images.image(i).tobytes()).hexdigest() for i in range(len(images))]
print(json.dumps([images.keys, images.labels, images.classes, digests]))
"""


def test_a_data_set_of_the_hub_is_read_where_it_lies(root, tmp_path):
    with LoopbackHub() as hub:
        hub.add("user/photos", root / "parquet", "dataset")
        command = [fresh_python(), "-c", ON_THE_HUB]
        run = subprocess.run(command, capture_output=True, text=True, env=os.environ | hub.environment(tmp_path))
        assert run.returncode == 0, run.stderr
    here = open_images(root / "parquet", labelled=True)
    digests = [hashlib.sha256(here.image(i).tobytes()).hexdigest() for i in range(len(here))]
    assert json.loads(run.stdout) == [list(here.keys), list(here.labels), list(here.classes), digests]
    assert not list(tmp_path.rglob("*.parquet"))


def test_tars_are_what_webdataset_reads(root):
    images = open_images(root / "tars")
    samples = list(webdataset.WebDataset(sorted(map(str, (root / "tars").glob("*.tar"))), shardshuffle=False))
    assert images.keys == tuple(sample["__key__"] for sample in samples)
    assert [images.classes[label] for label in images.labels] == [sample["cls"].decode() for sample in samples]
    assert_same(ImageSet(images.keys, images.labels, images.classes, lambda i: picture(i)), images)
    named = open_images(root / "tars", label_column="name")
    assert named.classes == CLASSES


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def test_folders_in_a_tar_are_classes(tmp_path):
    write_tar(tmp_path / "a.tar", {"./b/1.png": encoded(1), "./a/1.PNG": encoded(2), "a/._1.png": b"strewn"})
    images = open_images(tmp_path / "a.tar")
    assert (images.keys, images.labels, images.classes) == (("b/1", "a/1"), (1, 0), ("a", "b"))


def test_keys_that_several_tars_have_are_told_apart(tmp_path):
    for name in ("x", "y"):
        write_tar(tmp_path / f"{name}.tar", {"1.png": encoded(1), "1.cls": b"0"})
    assert open_images(tmp_path).keys == ("x/1", "y/1")


def test_numbers_in_json_are_classes_in_their_order(tmp_path):
    files = {f"{k}.png": encoded(k) for k in range(3)}
    write_tar(tmp_path / "a.tar", files | {f"{k}.json": json.dumps({"label": 10 - k}).encode() for k in range(3)})
    images = open_images(tmp_path / "a.tar")
    assert (images.labels, images.classes) == ((2, 1, 0), ("8", "9", "10"))


def test_numbers_beside_words_in_json_are_words(tmp_path):
    labels = {"1.json": b'{"label": 10}', "2.json": b'{"label": "cat"}', "3.json": b'{"label": 9}'}
    write_tar(tmp_path / "a.tar", {f"{k}.png": encoded(k) for k in (1, 2, 3)} | labels)
    images = open_images(tmp_path / "a.tar")
    assert (images.labels, images.classes) == ((0, 2, 1), ("10", "9", "cat"))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"1.txt": b"no image"}, "no images in the tars"),
        ({"1.png": encoded(1), "1.cls": b"0", "2.png": encoded(2)}, "1 of 2 images .* have no class, such as 2"),
        ({"1.png": encoded(1), "1.json": b"{"}, "is no tar, or one that is damaged"),
    ],
)
def test_tars_that_are_no_labelled_images(tmp_path, files, message):
    write_tar(tmp_path / "a.tar", files)
    with pytest.raises(ValueError, match=message):
        open_images(tmp_path / "a.tar", labelled=True)


@pytest.mark.parametrize(
    ("name", "kept"),
    [("tars/train-000.tar", 2000), ("tars/train-000.tar", 700), ("parquet/train-00000-of-00002.parquet", -40)],
)
def test_a_file_that_is_cut_short_is_told_at_once(root, s3, name, kept):
    content = (root / name).read_bytes()
    s3.put(f"short/{name}", content[:kept])
    with pytest.raises(ValueError, match=f"s3://{BUCKET}/short/{name} is no .*, or one that is damaged or cut short"):
        open_images(f"s3://{BUCKET}/short/{name}")


def test_an_image_that_is_gone_is_missing(root, s3):
    for number in range(3):
        s3.put(f"fading/a/{number}.png", encoded(number))
    images = open_images(f"s3://{BUCKET}/fading")
    for number in range(3):
        s3.delete(f"fading/a/{number}.png")
    with pytest.raises(FileNotFoundError, match=r"s3://photos/fading/a/0.png cannot be read"):
        images.image(0)
    with pytest.raises(FileNotFoundError, match="none of the 3 images can be had"):
        check_there(images)


@pytest.mark.parametrize(
    ("address", "error", "message"),
    [
        (
            "s3://no-such-bucket/photos",
            FileNotFoundError,
            "no-such-bucket/photos does not exist: check bucket and path",
        ),
        (f"s3://{BUCKET}/nowhere", FileNotFoundError, "nowhere does not exist"),
        (f"s3://{BUCKET}/nowhere/*.tar", FileNotFoundError, "does not exist"),
        ("nfs3://host/photos", ValueError, "has the protocol 'nfs3', which is not known"),
        ("gs://bucket/photos", ValueError, r'missing: pip install "sona-pipeline\[gcs\]"'),
        ("memory://empty", FileNotFoundError, "memory://empty does not exist"),
    ],
)
def test_addresses_that_lead_nowhere(s3, monkeypatch, address, error, message):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(error, match=message):
        open_images(address)


def test_an_address_without_credentials(s3, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with without_credentials(), pytest.raises(PermissionError, match="takes credentials that are missing"):
        open_images(f"s3://{BUCKET}/folder")


def test_images_in_several_forms_are_refused(s3):
    with pytest.raises(ValueError, match=r"holds images in several forms, .*: give the address of one"):
        open_images(f"s3://{BUCKET}/")
