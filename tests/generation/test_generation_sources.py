import datasets
import pytest
from pictures import picture

from sona_pipeline.cli.app import main
from sona_pipeline.generation.settings import GenerationSettings, LabelSettings, OutputSettings, SourceImages
from sona_pipeline.generation.sources import open_sources

LABELS = LabelSettings(ood_labels=("tree",))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def shard(path, count: int, label: str = "label") -> None:
    features = datasets.Features({"image": datasets.Image(), label: datasets.Value("int64")})
    rows = {"image": [picture(k, size=(32, 32)) for k in range(count)], label: [k % 2 for k in range(count)]}
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(rows, features=features).to_parquet(path)


def opened(place, **changes):
    settings = GenerationSettings(ood_labels=())
    return open_sources(SourceImages(str(place), **changes), LABELS, "tiny", settings, OutputSettings())


def test_outliers_are_made_of_one_split(tmp_path):
    shard(tmp_path / "train-00000-of-00001.parquet", 3)
    shard(tmp_path / "test-00000-of-00001.parquet", 2)
    assert len(opened(tmp_path).images) == 3
    assert len(opened(tmp_path, split="test").images) == 2
    with pytest.raises(ValueError, match=r"no split 'validation'; its splits are \['train', 'test'\]"):
        opened(tmp_path, split="validation")


def test_a_column_without_the_usual_name_is_asked_for(tmp_path):
    shard(tmp_path / "a.parquet", 2, label="target")
    with pytest.raises(ValueError, match=r"--label-column.* of its columns \['image', 'target'\]"):
        opened(tmp_path)
    assert opened(tmp_path, label_column="target").images.classes == ("0", "1")


def test_classes_that_are_numbers_are_told_before_the_run(tmp_path, capsys):
    (tmp_path / "data").mkdir()
    shard(tmp_path / "data" / "a.parquet", 2)
    places = ["--data", str(tmp_path / "data"), "--output", str(tmp_path / "o")]
    command = ["generate", *places, "--model", "tiny", "--dry-run"]
    main(command)
    said = " ".join(capsys.readouterr().out.split())
    assert "2 of 2 classes have no words but ['0', '1'], so that a prompt is 'a photo of a 0'" in said
    (tmp_path / "names.txt").write_text("0: cat\n1: dog\n")
    main([*command, "--class-names", str(tmp_path / "names.txt")])
    assert "no words" not in capsys.readouterr().out


def test_words_of_a_record_stand_unless_a_file_says_otherwise(tmp_path):
    shard(tmp_path / "a.parquet", 2)
    (tmp_path / "names.txt").write_text("0: dog\n1: wolf\n")
    recorded = GenerationSettings(ood_labels=(), id_labels={"0": "cat", "7": "whale"})
    names = {}
    for file in (None, tmp_path / "names.txt"):
        source = SourceImages(str(tmp_path / "a.parquet"), class_names=file)
        names[file] = open_sources(source, LABELS, "tiny", recorded, OutputSettings()).settings.id_labels
    assert list(names.values()) == [{"0": "cat", "1": "1"}, {"0": "dog", "1": "wolf"}]


def test_prompts_take_the_place_of_the_labels_of_a_record(tmp_path):
    shard(tmp_path / "a.parquet", 2)
    (tmp_path / "captions.txt").write_text("a tall tree\na red barn\n")
    choice = LabelSettings(ood_labels=("bag",), ood_prompts=tmp_path / "captions.txt")
    source, settings = SourceImages(str(tmp_path / "a.parquet")), GenerationSettings(ood_labels=())
    found = open_sources(source, choice, "tiny", settings, OutputSettings()).settings
    assert found.ood_labels == ("a tall tree", "a red barn")
    assert found.ood_prompt_of("a red barn", "cat") == "a red barn"


def test_words_for_classes_are_found_however_unicode_writes_them():
    settings = GenerationSettings(ood_labels=("tree",), id_labels={"Cafe\u0301": "coffee house", "bar": "pub"})
    words = ("coffee house", "coffee house", "pub", "x")
    assert tuple(map(settings.id_label, ("Caf\u00e9", "Cafe\u0301", "bar", "x"))) == words
