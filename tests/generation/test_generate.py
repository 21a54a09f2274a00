import io
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from outlier_sets import contents
from PIL import Image, features
from torchvision.datasets import ImageFolder

from sona_pipeline.common.files import only_run
from sona_pipeline.data import sample
from sona_pipeline.data.codecs import KeptForm
from sona_pipeline.data.image_set import ImageSet
from sona_pipeline.data.images import open_images
from sona_pipeline.data.outlier_set import open_outlier_set, read_rejects, read_rows, read_samples
from sona_pipeline.data.outlier_writer import OutlierWriter
from sona_pipeline.data.settings import CODECS
from sona_pipeline.generation.checkpoint import load_pipeline
from sona_pipeline.generation.generate import (
    NEW_KEYS,
    check_output,
    check_run,
    generate_outliers,
    make_plan,
)
from sona_pipeline.generation.plan import plan_outliers
from sona_pipeline.generation.settings import GenerationSettings, OutputSettings

SETTINGS = GenerationSettings(ood_labels=("bag", "sandal"), num_inference_steps=4)


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline("tiny", "cpu")


@pytest.fixture(scope="module")
def images():
    return sample.id_images("train").take(range(10))


def test_outlier_set_opens_in_datasets_and_torchvision(images, pipe, tmp_path):
    generate_outliers(images, pipe, tmp_path, SETTINGS)
    table = datasets.load_dataset("imagefolder", data_dir=tmp_path / "outliers", cache_dir=tmp_path / "cache")["train"]
    plan = {item.file_name: item for item in plan_outliers(images, SETTINGS)}
    assert len(table) == 10
    assert {row["source_key"] for row in table} == set(images.keys)
    assert Counter(table["stop_step"]) == Counter(item.stop_step for item in plan.values())
    assert table[0]["image"].size == (32, 32)
    folder = ImageFolder(tmp_path / "outliers")
    assert folder.classes == sorted({images.label_name(i) for i in range(10)})
    assert len(folder) == 10
    assert len(ImageFolder(tmp_path / "reconstructions")) == 10


def test_image_list_is_one_that_openood_reads(images, pipe, tmp_path):
    generate_outliers(images, pipe, tmp_path, SETTINGS)
    lines = (tmp_path / "outliers.txt").read_text().splitlines()
    assert sorted(line.split(" ", 1)[0] for line in lines) == sorted(
        path.relative_to(tmp_path).as_posix() for path in (tmp_path / "outliers").rglob("*.png")
    )
    assert {line.split(" ", 1)[1] for line in lines} == {"-1"}
    assert len(open_images(tmp_path / "outliers.txt")) == 10


def test_class_names_of_any_kind_become_folders_that_datasets_takes_for_classes(pipe, tmp_path):
    names = ["train", "test tube", "T-shirt/top", "ünï côde", "..", "val.1"]
    picture = Image.new("L", (32, 32), 90)
    images = ImageSet(tuple(f"test/{n}.png" for n in range(6)), tuple(range(6)), tuple(names), lambda _: picture)
    generate_outliers(images, pipe, tmp_path, SETTINGS)
    table = datasets.load_dataset("imagefolder", data_dir=tmp_path / "outliers", cache_dir=tmp_path / "cache")
    assert list(table) == ["train"]
    assert sorted(table["train"]["source_class"]) == sorted(names)


def test_shards_have_the_very_images_and_rows_of_a_folder(images, pipe, tmp_path):
    sets = {form: tmp_path / form for form in ("folder", "parquet", "webdataset")}
    for form, folder in sets.items():
        generate_outliers(images, pipe, folder, SETTINGS, OutputSettings(format=form, batch_size=4))
    rows = {form: list(read_rows(folder)) for form, folder in sets.items()}
    assert rows["parquet"] == rows["webdataset"] == rows["folder"]
    pairs = {form: open_outlier_set(folder, images) for form, folder in sets.items()}
    for k in range(10):
        for one in ("outliers", "reconstructions"):
            first, *others = (np.asarray(getattr(pair, one).image(k)) for pair in pairs.values())
            assert all((first == other).all() for other in others)
    assert pairs["parquet"].strengths == pairs["folder"].strengths


def test_outliers_do_not_depend_on_batch_size_or_order(images, tmp_path):
    """In float64: masks are step functions, so that the rounding of float32 can turn one of their entries over."""
    pipe = load_pipeline("tiny", "cpu").to(torch.float64)
    settings = replace(SETTINGS, num_inference_steps=12)
    for name, order, size in (("one", range(10), 10), ("other", range(9, -1, -1), 3), ("single", range(10), 1)):
        generate_outliers(images.take(order), pipe, tmp_path / name, settings, OutputSettings(batch_size=size))
    first = ImageFolder(tmp_path / "one" / "outliers")
    for other in ("other", "single"):
        for (path, _), (twin, _) in zip(first.samples, ImageFolder(tmp_path / other / "outliers").samples):
            assert Path(path).name == Path(twin).name
            difference = np.asarray(Image.open(path), dtype=int) - np.asarray(Image.open(twin), dtype=int)
            assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("form", ["folder", "parquet", "webdataset"])
def test_second_run_adds_nothing(images, pipe, tmp_path, form):
    writing = OutputSettings(format=form, batch_size=5)
    generate_outliers(images, pipe, tmp_path, SETTINGS, writing)
    before = contents(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"}
    generate_outliers(images, pipe, tmp_path, SETTINGS, writing)
    assert contents(tmp_path) == before
    assert all(path.stat().st_mtime_ns == time for path, time in times.items())


def test_deleted_images_are_made_again(images, pipe, tmp_path):
    generate_outliers(images, pipe, tmp_path, SETTINGS)
    before = contents(tmp_path)
    next(iter((tmp_path / "outliers").rglob("*.png"))).unlink()
    next(iter((tmp_path / "reconstructions").rglob("*.png"))).unlink()
    generate_outliers(images, pipe, tmp_path, SETTINGS)
    assert contents(tmp_path).keys() == before.keys()
    assert [r["file_name"] for r in read_rows(tmp_path)] == sorted(r["file_name"] for r in read_rows(tmp_path))
    assert len(list(read_rows(tmp_path))) == 10


@pytest.mark.parametrize("form", ["folder", "parquet"])
def test_more_images_extend_a_set(images, pipe, tmp_path, form):
    writing = OutputSettings(format=form)
    generate_outliers(images.take(range(4)), pipe, tmp_path, SETTINGS, writing)
    few = {row["file_name"]: row for row in read_rows(tmp_path)}
    generate_outliers(images, pipe, tmp_path, SETTINGS, writing)
    many = {row["file_name"]: row for row in read_rows(tmp_path)}
    assert len(few) == 4
    assert len(many) == 10
    assert few.items() <= many.items()
    assert len(open_outlier_set(tmp_path, images).outliers) == 10


def test_set_made_with_other_settings_is_refused(images, pipe, tmp_path):
    generate_outliers(images.take([0]), pipe, tmp_path, SETTINGS)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"guidance_scale \(10.0 then, 5.0 now\)"):
        generate_outliers(images, pipe, tmp_path, replace(SETTINGS, guidance_scale=5.0))
    with pytest.raises(ValueError, match=r"format \('folder' then, 'parquet' now\)"):
        generate_outliers(images, pipe, tmp_path, SETTINGS, OutputSettings(format="parquet"))
    assert contents(tmp_path) == before


def test_a_set_of_0_1_0_which_recorded_no_codec_goes_on_as_png(images, pipe, tmp_path):
    generate_outliers(images.take(range(4)), pipe, tmp_path, SETTINGS)
    path = tmp_path / "settings.json"
    record = {key: value for key, value in json.loads(path.read_text()).items() if key not in NEW_KEYS}
    path.write_text(json.dumps({k: v for k, v in record.items() if k not in ("save_size", "quality")}))
    before = contents(tmp_path)
    for writing in (OutputSettings(codec="webp"), OutputSettings(save_size=16), OutputSettings(codec="jpeg")):
        with pytest.raises(ValueError, match=r"made with other settings: (codec \('png' then|save_size \(None then)"):
            generate_outliers(images, pipe, tmp_path, SETTINGS, writing)
    assert contents(tmp_path) == before
    generate_outliers(images, pipe, tmp_path, SETTINGS)
    assert contents(tmp_path).items() > {n: c for n, c in before.items() if n.endswith(".png")}.items()
    assert len(list(read_rows(tmp_path))) == 10


@pytest.mark.parametrize("form", ["folder", "parquet", "webdataset"])
@pytest.mark.parametrize("codec", ["webp", "jpeg"])
def test_outliers_and_round_trips_have_one_codec_and_one_size(images, pipe, tmp_path, form, codec):
    """What was written is read again: no file tells outliers from round trips by its format, size, or tables."""
    writing = OutputSettings(format=form, save_size=16, codec=codec, quality=80 if codec == "jpeg" else None)
    generate_outliers(images, pipe, tmp_path, SETTINGS, writing)
    suffix, looks = CODECS[codec].suffix, set()
    for kept in read_samples(tmp_path):
        assert kept.row["file_name"].endswith(f".{suffix}")
        for content in (kept.outlier, kept.reconstruction):
            picture = Image.open(io.BytesIO(content))
            assert picture.format == CODECS[codec].format
            looks.add((picture.size, picture.mode, str(getattr(picture, "quantization", None))))
    assert len(looks) == 1 and next(iter(looks))[0] == (16, 16)
    pairs = open_outlier_set(tmp_path, images)
    assert len(pairs.outliers) == len(pairs.reconstructions) == 10
    assert pairs.outliers.image(0).size == pairs.reconstructions.image(0).size == (16, 16)
    assert pairs.form == KeptForm(32, 16, codec, writing.quality)


def test_a_set_of_another_codec_resumes_and_opens_in_the_ecosystem(images, pipe, tmp_path):
    writing = OutputSettings(codec="webp", save_size=24)
    generate_outliers(images.take(range(6)), pipe, tmp_path / "one", SETTINGS, writing)
    generate_outliers(images, pipe, tmp_path / "one", SETTINGS, writing)
    generate_outliers(images, pipe, tmp_path / "other", SETTINGS, writing)
    assert contents(tmp_path / "one").keys() == contents(tmp_path / "other").keys()
    victim = next((tmp_path / "one" / "outliers").rglob("*.webp"))
    victim.unlink()
    generate_outliers(images, pipe, tmp_path / "one", SETTINGS, writing)
    assert contents(tmp_path / "one").keys() == contents(tmp_path / "other").keys()
    lines = (tmp_path / "one" / "outliers.txt").read_text().split("\n")
    assert all((tmp_path / "one" / line.split(" ")[0]).is_file() for line in lines if line)
    place = tmp_path / "one" / "outliers"
    table = datasets.load_dataset("imagefolder", data_dir=place, cache_dir=tmp_path / "cache")["train"]
    assert len(table) == len(ImageFolder(place)) == 10
    assert {picture.size for picture in table["image"]} == {(24, 24)}


def test_checks_and_fingerprints_are_of_the_image_before_it_is_scaled(images, pipe, tmp_path):
    generate_outliers(images, pipe, tmp_path / "large", SETTINGS)
    generate_outliers(images, pipe, tmp_path / "small", SETTINGS, OutputSettings(save_size=8, codec="jpeg"))
    hidden = ("file_name", "sha256")
    large, small = (
        {row["source_key"]: {k: v for k, v in row.items() if k not in hidden} for row in read_rows(tmp_path / name)}
        for name in ("large", "small")
    )
    assert large == small


def test_settings_file_tells_model_parameters_and_versions(images, pipe, tmp_path):
    generate_outliers(images.take([0]), pipe, tmp_path, SETTINGS)
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert (settings["model"], settings["scheduler"]) == ("tiny", "DDIMScheduler")
    assert settings["ood_labels"] == ["bag", "sandal"]
    assert settings["num_inference_steps"] == 4
    assert settings["notes"]["versions"]["torch"] == __import__("torch").__version__.partition("+")[0]


def test_second_run_into_a_folder_in_use_is_refused(images, pipe, tmp_path):
    with only_run(tmp_path), pytest.raises(BlockingIOError, match="another run is writing to"):
        generate_outliers(images, pipe, tmp_path, SETTINGS)


def test_unreadable_image_is_recorded_and_passed_over(pipe, tmp_path):
    data = tmp_path / "data" / "shirt"
    data.mkdir(parents=True)
    Image.new("L", (32, 32), 90).save(data / "good.png")
    (data / "bad.png").write_bytes(b"no image")
    images = open_images(tmp_path / "data")
    for _ in range(2):
        generate_outliers(images, pipe, tmp_path / "set", SETTINGS)
    rows = [json.loads(line) for line in (tmp_path / "set" / "rejects.jsonl").read_text().splitlines()]
    assert [row["source_key"] for row in rows] == ["shirt/bad.png"]
    pairs = open_outlier_set(tmp_path / "set", images)
    assert pairs.images.keys == ("shirt/good.png",)
    assert len(pairs.outliers) == 1

    Image.new("L", (32, 32), 40).save(data / "bad.png")
    (tmp_path / "set" / "rejects.jsonl").unlink()
    generate_outliers(images, pipe, tmp_path / "set", SETTINGS)
    assert len(open_outlier_set(tmp_path / "set", images).outliers) == 2
    assert not list(read_rejects(tmp_path / "set"))


@pytest.mark.parametrize("form", ["folder", "parquet", "webdataset"])
@pytest.mark.parametrize("is_killed", [False, True])
def test_images_that_were_missing_are_made_by_the_next_run_and_damaged_ones_are_not(pipe, tmp_path, form, is_killed):
    data, writing = tmp_path / "data" / "shirt", OutputSettings(format=form, batch_size=2)
    data.mkdir(parents=True)
    for shade in range(5):
        Image.new("L", (32, 32), 50 * shade).save(data / f"{shade}.png")
    (data / "bad.png").write_bytes(b"no image")
    images = open_images(tmp_path / "data")
    for name in ("1.png", "3.png", "bad.png"):
        (data / name).rename(tmp_path / name)
    (data / "bad.png").write_bytes(b"no image")
    if is_killed:  # before the parts are merged
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(OutlierWriter, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            generate_outliers(images, pipe, tmp_path / "set", SETTINGS, writing)
    else:
        generate_outliers(images, pipe, tmp_path / "set", SETTINGS, writing)
    rejects = {row["source_key"]: row for row in read_rejects(tmp_path / "set")}
    assert {key: row.get("may_pass") for key, row in rejects.items()} == {
        "shirt/1.png": True,
        "shirt/3.png": True,
        "shirt/bad.png": None,
    }
    assert "does not exist" in rejects["shirt/1.png"]["reason"]
    for name in ("1.png", "3.png"):
        (tmp_path / name).rename(data / name)
    (data / "bad.png").unlink()
    Image.new("L", (32, 32), 7).save(data / "bad.png")
    generate_outliers(images, pipe, tmp_path / "set", SETTINGS, writing)
    assert [row["source_key"] for row in read_rejects(tmp_path / "set")] == ["shirt/bad.png"]
    assert len(open_outlier_set(tmp_path / "set", images).outliers) == 5


def test_rejects_of_0_1_0_for_missing_files_are_tried_again(images, pipe, tmp_path):
    generate_outliers(images.take([0]), pipe, tmp_path, SETTINGS)
    plan = plan_outliers(images, SETTINGS)
    reasons = ["/x/a.png cannot be read as an image: [Errno 2] No such file or directory: '/x/a.png'",
               "The latents of image 0 became NaN or infinite at step 3", "contrast is not finite",
               "/x/a.png cannot be read as an image: cannot identify image file"]  # fmt: skip
    rows = [{"file_name": plan[k].file_name, "source_key": images.keys[k], "reason": reason}
            for k, reason in enumerate(reasons, start=1)]  # fmt: skip
    (tmp_path / "rejects.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    generate_outliers(images.take(range(5)), pipe, tmp_path, SETTINGS)
    assert [row["source_key"] for row in read_rejects(tmp_path)] == [images.keys[4]]
    assert len(list(read_rows(tmp_path))) == 4


def test_a_run_that_makes_nothing_is_an_error_and_other_settings_may_follow(images, pipe, tmp_path):
    with pytest.raises(ValueError, match=r"no outlier was made of 10 images: contrast < 9 \(10\); the first: contrast"):
        generate_outliers(images, pipe, tmp_path, replace(SETTINGS, reject=("contrast<9",)))
    assert generate_outliers(images, pipe, tmp_path, SETTINGS)
    assert len(list(read_rows(tmp_path))) == 10 and not list(read_rejects(tmp_path))


def test_a_run_that_finds_none_of_the_images_left_is_an_error(images, pipe, tmp_path):
    def gone(index):
        raise FileNotFoundError("a.png cannot be read: it does not exist")

    generate_outliers(images.take(range(6)), pipe, tmp_path, SETTINGS)
    others = ImageSet(images.keys, images.labels, images.classes, lambda i: gone(i) if i > 5 else images.image(i))
    with pytest.raises(ValueError, match=r"no outlier was made of 4 images: does not exist \(4\)"):
        generate_outliers(others, pipe, tmp_path, SETTINGS)
    generate_outliers(images, pipe, tmp_path, SETTINGS)
    assert len(list(read_rows(tmp_path))) == 10


def test_nothing_is_written_where_no_image_is_to_be_had(images, pipe, tmp_path):
    (tmp_path / "list.txt").write_text("a/1.png 0\nb/2.png 1\n")
    (tmp_path / "elsewhere").mkdir()
    lost = open_images(tmp_path / "list.txt", image_root=tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"none of the 2 images can be had; the first: .*elsewhere/a/1\.png"):
        generate_outliers(lost, pipe, tmp_path / "set", SETTINGS)
    assert not (tmp_path / "set").exists()


def test_strict_run_stops_at_an_unreadable_image_and_keeps_what_is_done(pipe, tmp_path):
    data = tmp_path / "data" / "shirt"
    data.mkdir(parents=True)
    for shade in range(5):
        Image.new("L", (32, 32), 50 * shade).save(data / f"{shade}.png")
    (data / "bad.png").write_bytes(b"no image")
    images = open_images(tmp_path / "data")
    with pytest.raises(OSError, match=r"bad\.png cannot be read"):
        generate_outliers(images, pipe, tmp_path / "set", SETTINGS, OutputSettings(batch_size=1, strict=True))
    made = {row["source_key"] for row in read_rows(tmp_path / "set")}
    assert made <= set(images.keys) - {"shirt/bad.png"}
    (data / "bad.png").unlink()
    generate_outliers(open_images(tmp_path / "data"), pipe, tmp_path / "set", SETTINGS)
    assert len(list(read_rows(tmp_path / "set"))) == 5


def test_duplicates_are_dropped_on_request(pipe, tmp_path):
    picture = sample.id_images("train").image(0)
    images = ImageSet(tuple("abcdefgh"), (0,) * 8, ("shirt",), lambda _: picture)
    settings = replace(SETTINGS, drop_duplicates=True, num_inference_steps=1, guidance_scale=0.0)
    generate_outliers(images, pipe, tmp_path, settings)
    rows, rejects = list(read_rows(tmp_path)), list(read_rejects(tmp_path))
    names = sorted(plan_outliers(images, settings)[k].file_name for k in range(8))
    assert len({row["fingerprint"] for row in rows}) == len(rows) < 8
    assert rows[0]["file_name"] == names[0]
    assert {row["reason"] for row in rejects} <= {f"looks like {row['file_name']}" for row in rows}
    assert sorted(p.name for p in (tmp_path / "outliers").rglob("*.png")) == [Path(r["file_name"]).name for r in rows]
    before = contents(tmp_path)
    generate_outliers(images, pipe, tmp_path, settings)
    assert contents(tmp_path) == before


def test_pairs_belong_together(images, pipe, tmp_path):
    generate_outliers(images, pipe, tmp_path, SETTINGS)
    pairs = open_outlier_set(tmp_path, images.take(range(9, -1, -1)))
    steps = {images.keys[item.index]: item.stop_step for item in plan_outliers(images, SETTINGS)}
    assert pairs.strengths == tuple(steps[key] / 4 for key in pairs.images.keys)
    sources = [np.asarray(pairs.images.image(i), dtype=float) for i in range(10)]
    for i, source in enumerate(sources):
        back = np.asarray(pairs.reconstructions.image(i), dtype=float)
        others = sources[:i] + sources[i + 1 :]
        assert np.abs(source - back).mean() < min(np.abs(other - back).mean() for other in others)


@pytest.mark.parametrize("choice", ["close", "far"])
def test_label_choice_follows_the_pipelines_text_encoder(images, pipe, choice):
    plan = make_plan(images, pipe, replace(SETTINGS, label_choice=choice))
    texts = [f"a photo of a {name}" for name in (*images.classes, "bag", "sandal")]
    tokens = pipe.tokenizer(texts, padding=True, return_tensors="pt")
    pooled = pipe.text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask).pooler_output.detach()
    for item in plan:
        own, bag, sandal = (pooled[k] for k in (images.labels[item.index], -2, -1))
        to_bag, to_sandal = (float(own @ other / own.norm() / other.norm()) for other in (bag, sandal))
        assert item.ood_label == ("bag" if (to_bag > to_sandal) == (choice == "close") else "sandal")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ood_labels": ()}, "no OOD labels"),
        ({"ood_labels": ("bag", "Shirt")}, r"OOD labels \['Shirt'\] are ID classes"),
        ({"prompt": "a photo"}, "needs just one {}"),
        ({"prompt": "a {photo} of {}"}, "needs just one {}"),
        ({"mask_threshold": 0.5}, "`mask_threshold` is 0.5"),
        ({"guidance_scale": float("nan")}, "guidance scale is nan"),
        ({"size": 33}, "33 x 33 pixels, but the model takes multiples of 4"),
        ({"num_inference_steps": 2000}, "2000"),
        ({"resize_mode": "stretch"}, "`resize_mode` is 'stretch'"),
        ({"label_choice": "nearest"}, "`label_choice` is 'nearest'"),
        ({"reject": ("latent_distance=1",)}, "'latent_distance=1' is no bound"),
        ({"reject": ("source_confidence>0.5",)}, "needs a classifier"),
    ],
)
def test_bad_settings_are_refused(images, pipe, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        generate_outliers(images, pipe, tmp_path / "set", replace(SETTINGS, **change))
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "zip"}, "`format` is 'zip'"),
        ({"batch_size": 0}, "`batch_size` is 0"),
        ({"codec": "bmp"}, "`codec` is 'bmp', but has to be one of png, webp, jpeg"),
        ({"codec": "jpeg", "quality": 101}, "`quality` is 101, but has to be 1 or more and at most 100"),
        ({"quality": 90}, "the quality is 90, but 'png' loses nothing and has none: leave it out, or take 'jpeg'"),
        ({"save_size": 4}, "`save_size` is 4, but has to be 8 or more"),
        ({"save_size": 33}, "kept at 33 px, but the model makes them at 32 px: give at most that"),
    ],
)
def test_bad_output_settings_are_refused(images, pipe, change, message):
    with pytest.raises(ValueError, match=message):
        check_run(images, pipe, SETTINGS, replace(OutputSettings(), **change))


def test_what_cannot_be_written_is_said_before_a_model_is_loaded(monkeypatch):
    monkeypatch.setattr(features, "check", lambda name: name != "webp")
    with pytest.raises(ValueError, match="the codec is 'webp', which this Pillow lacks"):
        check_output(SETTINGS, OutputSettings(codec="webp"))
    with pytest.raises(ValueError, match="kept at 65 px, but the model makes them at 64 px"):
        check_output(replace(SETTINGS, size=64), OutputSettings(save_size=65))
    check_output(SETTINGS, OutputSettings(save_size=65))


def test_keys_that_are_not_unique_are_refused(images, pipe, tmp_path):
    with pytest.raises(ValueError, match="the same key"):
        generate_outliers(images.take([0, 0]), pipe, tmp_path / "set", SETTINGS)


def test_colour_images_are_refused_by_a_grey_model(pipe, tmp_path):
    (tmp_path / "data" / "red").mkdir(parents=True)
    Image.new("RGB", (32, 32), (200, 0, 0)).save(tmp_path / "data" / "red" / "1.png")
    with pytest.raises(ValueError, match="use a model for colour images"):
        generate_outliers(open_images(tmp_path / "data"), pipe, tmp_path / "set", SETTINGS)


def test_nothing_is_left_to_do_is_said(images, pipe, tmp_path):
    with pytest.raises(ValueError, match="there are no images to make outliers of"):
        generate_outliers(images.take([]), pipe, tmp_path / "set", SETTINGS)
    assert not (tmp_path / "set").exists()


def test_run_waits_for_the_files_of_other_processes_and_gives_up(images, pipe, tmp_path, monkeypatch):
    monkeypatch.setattr("sona_pipeline.generation.generate.SECONDS_UNTIL_IN_SIGHT", 0)
    committed = OutlierWriter.committed
    monkeypatch.setattr(OutlierWriter, "committed", lambda self: set())
    with pytest.raises(OSError, match="2 batches that other processes made are not in"):
        generate_outliers(images, pipe, tmp_path, SETTINGS, OutputSettings(batch_size=5))
    monkeypatch.setattr(OutlierWriter, "committed", committed)
    generate_outliers(images, pipe, tmp_path, SETTINGS, OutputSettings(batch_size=5))
    assert len(list(read_rows(tmp_path))) == 10
