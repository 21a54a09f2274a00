import json
import tarfile

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from sona_pipeline.data.settings import CODECS, PACKINGS
from sona_pipeline.data.shards import Sample

formats = pytest.mark.parametrize("form", ["parquet", "webdataset"])


def sample(number: int, *, reconstruction: bool = True, codec: str = "png") -> Sample:
    """An outlier of shade `number`; its round trip is ten shades lighter."""
    row = {
        "file_name": f"sea%20lion/{number:016x}.{CODECS[codec].suffix}",
        "source_key": f"sea lion/ü {number}.jpg",
        "stop_step": number,
        "seed": 2**62 + number,
        "contrast": number / 8,
    }
    pictures = (Image.new("RGB", (6, 4), (shade, 0, 255)) for shade in (number, number + 10))
    outlier, other = map(CODECS[codec].encoded, pictures)
    return Sample(row, outlier, other if reconstruction else None)


def merged(form: str, folder, batches, is_kept=lambda name: True):
    """The shard that parts with these batches are merged into."""
    packing, parts = PACKINGS[form], [folder / f"part-{k}" for k in range(len(batches))]
    for path, batch in zip(parts, batches):
        packing.pack(path, batch)
    shard = folder / f"train-shard.{packing.suffix}"
    packing.merge(shard, parts, is_kept)
    return shard


def opened(form: str, shard, folder) -> list[tuple[dict, int, int | None]]:
    """Row, outlier's shade and round trip's shade of all samples, as `datasets` reads them."""
    table = datasets.load_dataset(form, data_files=str(shard), split="train", cache_dir=folder / "cache")
    outlier, other = PACKINGS[form].columns("png")
    found = []
    for line in table:
        row = line["json"] if form == "webdataset" else {k: v for k, v in line.items() if k not in (outlier, other)}
        assert line[outlier].size == (6, 4)
        shades = [np.asarray(line[name])[0, 0, 0] if name in line else None for name in (outlier, other)]
        found.append((row, *shades))
    return found


@formats
@pytest.mark.parametrize("reconstruction", [True, False])
def test_datasets_opens_a_shard_with_all_rows_and_pictures_of_its_parts(form, reconstruction, tmp_path):
    batches = [[sample(n, reconstruction=reconstruction) for n in some] for some in ([3, 1], [7], [2, 5, 4])]
    found = opened(form, merged(form, tmp_path, batches), tmp_path)
    assert found == [
        (s.row, s.row["stop_step"], s.row["stop_step"] + 10 if reconstruction else None)
        for batch in batches
        for s in batch
    ]


@formats
def test_a_shard_has_only_the_samples_that_are_kept(form, tmp_path):
    batches = [[sample(3), sample(1)], [sample(7)], [sample(2), sample(5)]]
    names = [sample(n).row["file_name"] for n in (1, 2)]
    found = opened(form, merged(form, tmp_path, batches, names.__contains__), tmp_path)
    assert [shades for _, *shades in found] == [[1, 11], [2, 12]]


def test_parquet_holds_the_very_png_files_and_the_types_of_datasets(tmp_path):
    shard = merged("parquet", tmp_path, [[sample(1)], [sample(2)]])
    rows = pq.read_table(shard).to_pylist()
    assert [row["image"]["bytes"] for row in rows] == [sample(1).outlier, sample(2).outlier]
    assert [row["reconstruction"]["bytes"] for row in rows] == [sample(1).reconstruction, sample(2).reconstruction]
    features = datasets.Features.from_arrow_schema(pq.read_schema(shard))
    assert features == {
        "image": datasets.Image(),
        "reconstruction": datasets.Image(),
        "file_name": datasets.Value("string"),
        "source_key": datasets.Value("string"),
        "stop_step": datasets.Value("int64"),
        "seed": datasets.Value("int64"),
        "contrast": datasets.Value("float64"),
    }


def test_tar_holds_the_very_png_files_side_by_side(tmp_path):
    shard = merged("webdataset", tmp_path, [[sample(1)], [sample(2, reconstruction=False)]])
    with tarfile.open(shard) as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar}
    one, two = f"{1:016x}", f"{2:016x}"
    assert list(files) == [f"{one}.png", f"{one}.reconstruction.png", f"{one}.json", f"{two}.png", f"{two}.json"]
    assert files[f"{one}.png"] == sample(1).outlier
    assert files[f"{one}.reconstruction.png"] == sample(1).reconstruction
    assert files[f"{two}.png"] == sample(2).outlier
    assert json.loads(files[f"{two}.json"]) == sample(2).row


def test_webdataset_opens_a_tar(tmp_path):
    shard = merged("webdataset", tmp_path, [[sample(1)], [sample(4), sample(2)]])
    found = list(webdataset.WebDataset(str(shard), shardshuffle=False))
    assert [json.loads(one["json"]) for one in found] == [sample(n).row for n in (1, 4, 2)]
    assert [one["png"] for one in found] == [sample(n).outlier for n in (1, 4, 2)]
    assert [one["reconstruction.png"] for one in found] == [sample(n).reconstruction for n in (1, 4, 2)]


@formats
@pytest.mark.parametrize("codec", ["webp", "jpeg"])
def test_shards_hold_files_of_every_codec(form, codec, tmp_path):
    batches = [[sample(1, codec=codec)], [sample(4, codec=codec)]]
    shard = merged(form, tmp_path, batches)
    assert list(PACKINGS[form].unpack(shard)) == [sample(1, codec=codec), sample(4, codec=codec)]
    table = datasets.load_dataset(form, data_files=str(shard), split="train", cache_dir=tmp_path / "cache")
    for name in PACKINGS[form].columns(CODECS[codec].suffix):
        assert {picture.format for picture in table[name]} == {CODECS[codec].format}
    if form == "webdataset":
        decoded = list(webdataset.WebDataset(str(shard), shardshuffle=False).decode("pil"))
        assert [one[CODECS[codec].suffix].size for one in decoded] == [(6, 4)] * 2


@formats
def test_equal_samples_make_equal_files(form, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, other = (merged(form, tmp_path / name, [[sample(1)], [sample(2)]]).read_bytes() for name in "ab")
    assert one == other
