import datasets
import pytest
from pictures import fill, picture, shades

from sona_pipeline.cli.app import main
from sona_pipeline.evaluation.settings import TestImages
from sona_pipeline.evaluation.sources import methods_of, open_test_images

IMAGE = datasets.Image()


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def shard(path, shades_: list[int], **labels) -> None:
    kinds = {"image": IMAGE} | {name: datasets.ClassLabel(names=["cat", "dog"]) for name in labels}
    rows = {"image": [picture(shade) for shade in shades_], **labels}
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(rows, features=datasets.Features(kinds)).to_parquet(path)


def test_test_images_are_the_test_split_and_others_are_fitted_to(tmp_path):
    shard(tmp_path / "id" / "data" / "train-00000-of-00001.parquet", [1, 2], label=[0, 1])
    shard(tmp_path / "id" / "data" / "test-00000-of-00001.parquet", [3], label=[1])
    shard(tmp_path / "near" / "test.parquet", [4], label=[-1])
    shard(tmp_path / "near" / "train.parquet", [5], label=[0])
    place = str(tmp_path / "id")
    opened = open_test_images(TestImages(place, near=(f"a={tmp_path / 'near'}",), fit=place), ["knn"])
    assert (shades(opened.sets.id), shades(opened.fit), shades(opened.sets.near["a"])) == ([3], [1, 2], [4])
    with pytest.raises(ValueError, match=r"near has no split 'validation'; its splits are \['train', 'test'\]"):
        open_test_images(TestImages(str(tmp_path / "near"), split="validation"), [])


def test_columns_of_classes_can_be_chosen_and_ood_images_need_none(tmp_path):
    shard(tmp_path / "id.parquet", [1, 2], fine=[0, 1], coarse=[1, 1])
    shard(tmp_path / "ood.parquet", [3], one=[0], two=[0])
    places = {"id": str(tmp_path / "id.parquet"), "far": (f"o={tmp_path / 'ood.parquet'}",)}
    opened = open_test_images(TestImages(**places, label_column="coarse"), [])
    assert (opened.sets.id.labels, opened.sets.far["o"].labels) == ((1, 1), ())
    with pytest.raises(ValueError, match=r"several columns with classes, \['fine', 'coarse'\]"):
        open_test_images(TestImages(**places), [])


@pytest.fixture
def photos(tmp_path, monkeypatch):
    for name in ("photos", "birds"):
        fill(tmp_path / name, ["cat/1.png", "dog/1.png"])
    (tmp_path / "link").symlink_to("birds")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "options",
    [
        ["--near", "a=birds", "--near", "b=birds/"],
        ["--near", "a=link", "--far", "b=birds"],
        ["--far", "a=birds", "--shifted", "b=./birds"],
    ],
)
def test_a_place_that_is_given_twice_is_named_at_once(options, photos, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", "--detector", "none", "--id", "photos", *options, "--output", "results"])
    said = " ".join("".join(capsys.readouterr()).split())
    assert stopped.value.code == 2 and "are one place: give it once" in said and "Traceback" not in said
    assert not (photos / "results").exists()


def test_a_detector_that_is_given_twice_is_named(photos):
    for given in (["photos", "photos"], ["photos", "photos/"], ["a=link", "b=birds"], ["me/a", "x=me/a"]):
        with pytest.raises(ValueError, match=r"--detector .* give it once"):
            methods_of(given)
    assert methods_of(["photos", "b=birds"]) == [("photos", "photos"), ("b", "birds")]
