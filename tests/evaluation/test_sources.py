import shutil
from pathlib import Path

import pytest
from shapes import shapes

from sona_pipeline.cli.app import main
from sona_pipeline.common.settings import settings_of
from sona_pipeline.data.images import open_images
from sona_pipeline.detection.scores import OWN_SCORES
from sona_pipeline.evaluation.posthoc import POST_HOC
from sona_pipeline.evaluation.score_names import OPENOOD_NAMES, score_names
from sona_pipeline.evaluation.settings import ScoringSettings, TestImages
from sona_pipeline.evaluation.sources import open_test_images

SEARCHED = ["ash_b"]


@pytest.fixture
def places(tmp_path) -> dict[str, str]:
    """Folders of images by what they are for."""
    found = {}
    for seed, name in enumerate(("test", "train", "held-out", "near", "other", "shifted")):
        images = shapes(["horizontal", "vertical"], 4, seed=seed)
        for i, key in enumerate(images.keys):
            path = tmp_path / name / images.label_name(i) / f"{key}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            images.image(i).save(path)
        found[name] = str(tmp_path / name)
    return found


def source(places: dict[str, str], **changes) -> TestImages:
    given = {
        "id": places["test"],
        "near": (f"near={places['near']}",),
        "fit": places["train"],
        "validation": places["held-out"],
        "validation_ood": places["other"],
    }
    return TestImages(**given | changes)


def test_a_search_opens_id_and_ood_validation_images(places):
    opened = open_test_images(source(places), SEARCHED, search=True)
    assert len(opened.validation) == len(opened.search) == 4
    assert opened.validation.keys != () and opened.search is not opened.validation
    assert open_test_images(source(places, validation_ood=None), SEARCHED).search is None


def test_validation_images_come_from_a_split_of_their_own(places, tmp_path):
    for split, place in {"train": "train", "val": "held-out", "test": "test"}.items():
        shutil.copytree(places[place], tmp_path / "all" / split)
    root = str(tmp_path / "all")
    opened = open_test_images(source(places, validation=root, id=root, validation_ood=None), [])
    for found, place in ((opened.validation, "held-out"), (opened.sets.id, "test")):
        expected = open_images(places[place])
        assert [found.image(i).tobytes() for i in range(4)] == [expected.image(i).tobytes() for i in range(4)]


def test_splits_whose_files_have_the_same_names_are_other_images(places, tmp_path):
    for split, place in {"val": "held-out", "test": "test"}.items():
        for number, path in enumerate(sorted(Path(places[place]).rglob("*.png"))):
            copy = tmp_path / "all" / split / path.parent.name / f"{number}.png"
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    root = str(tmp_path / "all")
    opened = open_test_images(source(places, validation=root, id=root), SEARCHED, search=True)
    assert opened.validation.keys == opened.sets.id.keys
    with pytest.raises(ValueError, match=r"--validation .*all are test images"):
        open_test_images(source(places, validation=root, id=root, validation_split="test"), SEARCHED, search=True)


def test_a_search_without_images_of_its_own_or_by_test_images_is_refused(places):
    for missing in ("validation", "validation_ood"):
        with pytest.raises(ValueError, match="no test images: give --validation and --validation-ood"):
            open_test_images(source(places, **{missing: None}), SEARCHED, search=True)
    with pytest.raises(ValueError, match="--validation-ood is for --search"):
        open_test_images(source(places), SEARCHED)
    with pytest.raises(ValueError, match=r"--validation-ood .*near.* are test images"):
        open_test_images(source(places, validation_ood=places["near"] + "/."), SEARCHED, search=True)
    with pytest.raises(ValueError, match=r"--validation .*test are test images"):
        open_test_images(source(places, validation=places["test"]), SEARCHED, search=True)


@pytest.mark.parametrize("kind", ["near", "shifted", "test"])
@pytest.mark.parametrize("search", [True, False])
def test_scores_are_fitted_to_no_test_images(kind, search, places):
    """`react` takes its percentile from the validation images, with a search or without."""
    shifted = (f"fog={places['shifted']}",)
    given = source(places, shifted=shifted, validation=places[kind], validation_ood=places["other"] if search else None)
    with pytest.raises(ValueError, match=rf"--validation .*{kind} are test images"):
        open_test_images(given, ["react"], search=search)


@pytest.mark.parametrize("scores", [[], ["energy"], ["she", "msp"]])
def test_a_search_of_scores_without_parameters_is_refused(places, scores):
    with pytest.raises(ValueError, match=r"no parameters of \[.*\]: give --score one or more of .*'scale'"):
        open_test_images(source(places), scores, search=True)


def test_a_misspelled_score_ends_the_command_before_images_are_opened(capsys):
    for name, said in (("mahalanobi", "did you mean 'mahalanobis'"), ("Energy", "did you mean 'energy'")):
        arguments = ["evaluate", "--detector", "none", "--id", "none", "--score", name, "--output", "none"]
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        out = " ".join("".join(capsys.readouterr()).split())
        assert stopped.value.code == 2 and f"no score is named {name!r}: {said}" in out and "Traceback" not in out
    assert not Path("none").exists()


def test_all_is_every_score_and_names_count_once():
    assert score_names(["all"]) == [*OWN_SCORES, *POST_HOC]
    assert score_names(["knn", "all", "ebo"])[0] == "knn" and len(score_names(["knn", "all", "ebo"])) == len(
        {*OWN_SCORES, *POST_HOC}
    )
    assert {*OPENOOD_NAMES.values()} <= {*OWN_SCORES, *POST_HOC}
    assert not {*OPENOOD_NAMES} & {*OWN_SCORES, *POST_HOC}


def test_help_lists_every_score():
    (help_text,) = [setting.help for setting in settings_of(ScoringSettings) if setting.name == "score"]
    assert [name for name in [*OWN_SCORES, *POST_HOC, "all"] if f"'{name}'" not in help_text] == []


def test_guide_lists_every_score():
    guide = (Path(__file__).parents[2] / "examples" / "guides" / "evaluation.md").read_text(encoding="utf-8")
    assert [name for name in [*OWN_SCORES, *POST_HOC, "all", *OPENOOD_NAMES] if f"`{name}`" not in guide] == []


def test_test_images_of_a_wrong_root_are_refused_before_anything_is_scored(places, tmp_path):
    (tmp_path / "list.txt").write_text("a/1.png 0\nb/2.png 1\n")
    with pytest.raises(FileNotFoundError, match="none of the 2 images can be had"):
        open_test_images(source(places, id=str(tmp_path / "list.txt"), image_root=tmp_path), SEARCHED, search=True)
