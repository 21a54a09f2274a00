import io
import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from sona_pipeline.common import figures
from sona_pipeline.common.files import png
from sona_pipeline.data import sample as sample_images
from sona_pipeline.data.codecs import KeptForm
from sona_pipeline.data.image_set import ImageSet
from sona_pipeline.data.outlier_writer import OutlierWriter
from sona_pipeline.data.settings import FORMATS
from sona_pipeline.data.shards import Sample
from sona_pipeline.generation.inspection import draw_inspection, find_shortcuts, inspect_outliers, summary

formats = pytest.mark.parametrize("form", FORMATS)

# Number, class, OOD label, stop step, fingerprint, latent distance, of each outlier.
OUTLIERS = [
    (1, "cat", "bag", 3, "aa", 0.5),
    (2, "cat", "boot", 7, "bb", 0.75),
    (3, "cat", "bag", 3, "aa", 1.0),
    (4, "dog", "bag", 1, "aa", 1.25),
    (5, "dog", "bag", 7, "cc", 1.5),
]
REASONS = [
    "contrast 0.01235 < 0.05",
    "contrast 0.02 < 0.05",
    "contrast 1e-05 < 0.05, latent_distance 1.6 > 1.5",
    "flagged by the safety checker",
    "looks like cat/0000000000000001.png",
    "looks like dog/0000000000000004.png",
    "/data/cat/7.jpg cannot be read as an image: broken",
    "/data/cat/8.jpg cannot be read as an image: empty",
]
DEPTHS = {"outlier": 0, "round trip": 100, "source": 200}
"""Shades of the pictures: that of outlier 3 is 3, that of its source's round trip 103, that of its source 203."""


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """A place of its own for what `datasets` caches."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def picture(number: int, kind: str) -> Image.Image:
    return Image.new("L", (8, 8), number + DEPTHS[kind])


def sample(number, class_name, ood_label, stop_step, mark, distance, reconstruction: bool) -> Sample:
    row = {
        "file_name": f"{class_name}/{number:016x}.png",
        "source_key": f"key {number}",
        "source_class": class_name,
        "id_label": f"a {class_name}",
        "ood_label": ood_label,
        "stop_step": stop_step,
        "seed": number,
        "latent_distance": distance,
        "contrast": 0.25,
        "saturation": 0.0,
        "fingerprint": mark,
    }
    return Sample(row, png(picture(number, "outlier")), png(picture(number, "round trip")) if reconstruction else None)


def outlier_set(folder: Path, form: str = "folder", *, reconstructions: bool = True, finished: bool = True) -> Path:
    folder.mkdir(exist_ok=True)
    settings = {"ood_labels": ["bag", "boot"], "format": form, "reconstructions": reconstructions}
    (folder / "settings.json").write_text(json.dumps(settings | {"num_inference_steps": 8, "resize_mode": "crop"}))
    samples = [sample(*outlier, reconstructions) for outlier in OUTLIERS]
    rejects = [
        {"file_name": f"cat/{k:016x}.png", "source_key": f"key {k}", "reason": reason}
        for k, reason in enumerate(REASONS, start=100)
    ]
    writer = OutlierWriter(folder, form)
    writer.commit("b", samples[::2], rejects[:4])
    if finished:
        writer.commit("a", samples[1::2], rejects[4:])
        writer.finish()
    else:
        writer.finish()
        writer.commit("a", samples[1::2], rejects[4:])
    return folder


def sources() -> ImageSet:
    """The sources of the outliers and one more image, in another order."""
    numbers = (9, 5, 2, 4, 1, 3)
    keys = tuple(f"key {number}" for number in numbers)
    return ImageSet(keys, (0,) * 6, ("cat",), lambda index: picture(numbers[index], "source"))


@formats
@pytest.mark.parametrize("finished", [True, False])
def test_counts_are_those_made_by_hand(form, finished, tmp_path):
    found = inspect_outliers(outlier_set(tmp_path, form, finished=finished))
    assert found.classes == Counter(cat=3, dog=2)
    assert found.labels == Counter(bag=4, boot=1)
    assert found.stop_steps == Counter({3: 2, 7: 2, 1: 1})
    assert found.duplicates == 2
    assert {name: values.tolist() for name, values in found.checks.items()} == {
        "latent_distance": [0.5, 0.75, 1.0, 1.25, 1.5],
        "contrast": [0.25] * 5,
        "saturation": [0] * 5,
    }
    assert [row["file_name"][-5] for row in found.rows] == list("12345")
    assert found.settings["ood_labels"] == ["bag", "boot"]
    assert found.rejects == Counter(
        {
            "contrast < 0.05": 2,
            "contrast < 0.05, latent_distance > 1.5": 1,
            "flagged by the safety checker": 1,
            "looks like another outlier": 2,
            "cannot be read as an image": 2,
        }
    )


def test_the_check_of_a_classifier_is_shown_if_there_is_one(tmp_path):
    outlier_set(tmp_path)
    table = tmp_path / "outliers" / "metadata.jsonl"
    rows = [json.loads(line) | {"source_confidence": k / 8} for k, line in enumerate(table.read_text().splitlines())]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert inspect_outliers(tmp_path).checks["source_confidence"].tolist() == [0, 0.125, 0.25, 0.375, 0.5]


def drawn(monkeypatch, folder: Path, images: ImageSet | None = None, **options) -> list[tuple]:
    """Shade of the source (or None) and of the outlier, and caption, of the samples on a sheet, which is a picture."""
    seen, draw = [], figures.inspection_figure

    def recorded(counts, stop_steps, steps, checks, pairs, notes):
        assert steps == 8
        seen.extend(pairs)
        return draw(counts, stop_steps, steps, checks, pairs, notes)

    monkeypatch.setattr(figures, "inspection_figure", recorded)
    path = folder / "sheets" / "sheet.png"
    found = draw_inspection(folder, path, images, **options)
    assert found.classes == inspect_outliers(folder).classes
    with Image.open(path) as sheet:
        assert sheet.format == "PNG"
        assert min(sheet.size) > 300
        assert np.asarray(sheet.convert("L")).std() > 10
    return [
        (source.convert("L").getpixel((0, 0)) if source else None, outlier.getpixel((0, 0)), caption)
        for source, outlier, caption in seen
    ]


CAPTIONS = {
    4: "a dog\n→ bag, 1",
    1: "a cat\n→ bag, 3",
    3: "a cat\n→ bag, 3",
    2: "a cat\n→ boot, 7",
    5: "a dog\n→ bag, 7",
}
"""Of all outliers, by rising stop step."""


@formats
def test_a_sheet_shows_outliers_below_their_sources(form, tmp_path, monkeypatch):
    samples = drawn(monkeypatch, outlier_set(tmp_path, form), sources())
    assert samples == [(200 + number, number, caption) for number, caption in CAPTIONS.items()]


def test_a_sheet_shows_sources_of_every_mode(tmp_path, monkeypatch):
    images = sources()
    clear = replace(images, _open=lambda k: Image.merge("LA", [images.image(k), Image.new("L", (8, 8))]))
    assert [shade for shade, *_ in drawn(monkeypatch, outlier_set(tmp_path), clear)] == [255] * len(CAPTIONS)


@formats
def test_without_the_data_a_sheet_shows_the_round_trips(form, tmp_path, monkeypatch):
    samples = drawn(monkeypatch, outlier_set(tmp_path, form))
    assert samples == [(100 + number, number, caption) for number, caption in CAPTIONS.items()]


@formats
def test_without_data_and_round_trips_a_sheet_shows_the_outliers_alone(form, tmp_path, monkeypatch):
    samples = drawn(monkeypatch, outlier_set(tmp_path, form, reconstructions=False))
    assert samples == [(None, number, caption) for number, caption in CAPTIONS.items()]


@formats
def test_a_sheet_shows_sets_without_early_outliers(form, tmp_path, monkeypatch):
    """As the ways without a stop step make them: all of the last one."""
    late = [(number, *names, 8, mark, distance) for number, *names, _, mark, distance in OUTLIERS]
    monkeypatch.setattr(sys.modules[__name__], "OUTLIERS", late)
    assert [number for _, number, _ in drawn(monkeypatch, outlier_set(tmp_path, form))] == [1, 2, 3, 4, 5]
    (told,) = find_shortcuts(tmp_path, inspect_outliers(tmp_path))
    assert (told.pairs, told.auroc) == (0, None)


def test_a_sheet_of_an_unfinished_folder_shows_all_there_is(tmp_path, monkeypatch):
    assert [number for _, number, _ in drawn(monkeypatch, outlier_set(tmp_path, finished=False))] == list(CAPTIONS)


@pytest.mark.parametrize(("pairs", "numbers"), [(1, [4]), (2, [4, 5]), (3, [4, 3, 5]), (100, [4, 1, 3, 2, 5])])
def test_few_samples_are_spread_over_the_stop_steps(tmp_path, monkeypatch, pairs, numbers):
    assert [number for _, number, _ in drawn(monkeypatch, outlier_set(tmp_path), pairs=pairs)] == numbers


def test_labels_with_the_same_beginning_have_bars_of_their_own():
    labels = {"a photo of a small brown dog": 3, "a photo of a small brown cat": 2, "bag": 2}
    pairs = [(None, picture(1, "outlier"), "")]
    sheet = figures.inspection_figure({"OOD label": labels}, {1: 7}, 8, {"contrast": np.ones(7)}, pairs)
    bars = sheet.subfigs[0].axes[0].patches
    assert sorted((round(bar.get_y() + bar.get_height() / 2), bar.get_width()) for bar in bars) == [
        (0, 2),
        (1, 2),
        (2, 3),
    ]


def test_data_that_lack_a_source_are_refused(tmp_path):
    outlier_set(tmp_path)
    with pytest.raises(ValueError, match="the images have no 'key 4', which an outlier comes from"):
        draw_inspection(tmp_path, tmp_path / "sheet.png", sources().take([0, 1, 2]))
    assert not (tmp_path / "sheet.png").exists()


def test_an_empty_set_and_another_folder_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a set made by `sona generate`"):
        inspect_outliers(tmp_path)
    settings = {"ood_labels": ["bag"], "format": "folder", "reconstructions": True, "num_inference_steps": 8}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="has no outliers yet"):
        inspect_outliers(tmp_path)
    with pytest.raises(ValueError, match="has no outliers yet"):
        draw_inspection(tmp_path, tmp_path / "sheet.png")


class Killed(BaseException):
    """The end of the process."""


@formats
def test_an_outlier_counts_once_while_it_is_in_the_table_and_in_a_part(form, tmp_path, monkeypatch):
    unlink = Path.unlink

    def killed_at_the_parts_rows(path, **options):
        if path.suffix == ".jsonl":
            raise Killed
        unlink(path, **options)

    outlier_set(tmp_path, form, finished=False)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Path, "unlink", killed_at_the_parts_rows)
        OutlierWriter(tmp_path, form).finish()
    assert inspect_outliers(tmp_path).classes == Counter(cat=3, dog=2)


def test_an_outlier_that_was_made_again_counts_once(tmp_path):
    outlier_set(tmp_path)
    OutlierWriter(tmp_path, "folder").commit("again", [sample(*OUTLIERS[0], True)], [])
    found = inspect_outliers(tmp_path)
    assert (found.classes, found.duplicates) == (Counter(cat=3, dog=2), 2)


def photo_set(folder: Path, form: str, **kept) -> tuple[Path, list[Image.Image]]:
    """A set whose round trips are its sources, patches of photographs, and whose outliers are other patches."""
    patches = sample_images.far_ood()["photos"]
    order = np.random.default_rng(0).permutation(len(patches))
    photos = [patches.image(int(i)) for i in order]
    settings = {"ood_labels": ["bag"], "format": form, "reconstructions": True, "num_inference_steps": 50}
    settings |= {"resize_mode": "crop", "save_size": None, "codec": "png", "quality": None, "notes": {"model_size": 32}}
    folder.mkdir(exist_ok=True)
    (folder / "settings.json").write_text(json.dumps(settings | kept))
    samples = []
    for k in range(200):
        row = sample(k, "cat", "bag", 1 + k % 8, f"{k}", 1.0, False).row
        samples.append(Sample(row, png(photos[200 + k]), png(photos[k])))
    writer = OutlierWriter(folder, form)
    writer.commit("a", samples, [])
    writer.finish()
    return folder, photos


def of_photos(photos: list[Image.Image]) -> ImageSet:
    return ImageSet(tuple(f"key {k}" for k in range(200)), (0,) * 200, ("cat",), photos.__getitem__)


def as_jpeg(photo: Image.Image, quality: int) -> Image.Image:
    content = io.BytesIO()
    photo.save(content, "JPEG", quality=quality)
    return Image.open(content)


@pytest.mark.parametrize("form", ["folder", "webdataset"])
def test_jpeg_photos_beside_png_round_trips_are_a_shortcut_and_png_ones_are_none(form, tmp_path):
    folder, photos = photo_set(tmp_path, form)
    found = draw_inspection(folder, tmp_path / "sheet.png", of_photos([as_jpeg(photo, 80) for photo in photos]))
    codec, outliers = found.shortcuts
    assert (codec.pairs, codec.auroc > 95) == (200, True)
    assert (outliers.images, outliers.pairs) == ("outliers of stop steps 1 to 5", 125)
    assert abs(outliers.auroc - 50) < outliers.chance
    said = [line for line in summary(found) if isinstance(line, str)]
    assert f"A probe tells round trips from their ID images with an AUROC of {codec.auroc:.1f} (200 of each;" in said[2]
    assert "A probe tells outliers of stop steps 1 to 5 from the round trips of their sources with" in said[3]
    assert said[4].startswith("Near 50, codec, scaling and model leave no trace to tell them by; near 100, a detector")
    same, _ = find_shortcuts(folder, found, of_photos(photos))
    assert same.auroc == 50


def test_id_images_are_looked_at_as_training_sees_them(tmp_path):
    """Larger ones are scaled as outliers were, and undergo their codec, so that neither is a shortcut."""
    folder, photos = photo_set(tmp_path, "folder", save_size=24, codec="jpeg", quality=70, notes={"model_size": 48})
    form = KeptForm(48, 24, "jpeg", 70)
    for name, k in ((path.name, int(path.stem, 16)) for path in (folder / "reconstructions" / "cat").iterdir()):
        (folder / "reconstructions" / "cat" / name).write_bytes(form.encoded(photos[k].resize((48, 48), 1)))
    trips, _ = find_shortcuts(folder, inspect_outliers(folder), of_photos(photos))
    assert trips.auroc == pytest.approx(50, abs=1)
    (folder / "settings.json").write_text(
        json.dumps(json.loads((folder / "settings.json").read_text()) | {"quality": None, "codec": "png"})
    )
    trips, _ = find_shortcuts(folder, inspect_outliers(folder), of_photos(photos))
    assert trips.auroc > 90


def test_sets_without_round_trips_or_with_few_outliers_have_no_figure(tmp_path):
    assert inspect_outliers(outlier_set(tmp_path / "few")).shortcuts == ()
    found = draw_inspection(tmp_path / "few", tmp_path / "sheet.png", sources())
    assert [one.auroc for one in found.shortcuts] == [None, None]
    text = "\n".join(line for line in summary(found) if isinstance(line, str))
    assert "Round trips and their ID images: 5 are too few for a probe, which needs 50" in text
    outlier_set(tmp_path / "without", reconstructions=False)
    assert draw_inspection(tmp_path / "without", tmp_path / "sheet.png", sources()).shortcuts == ()
