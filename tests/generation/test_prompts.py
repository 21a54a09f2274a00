from dataclasses import replace

import pytest

from sona_pipeline.generation.checkpoint import load_pipeline
from sona_pipeline.generation.prompts import check_prompts, prompt_doubts
from sona_pipeline.generation.settings import GenerationSettings

SETTINGS = GenerationSettings(ood_labels=("bird",))
LONG = "very " * 100


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline("tiny", "cpu")


def test_prompts_that_are_read_as_they_are_raise_no_doubts(pipe):
    check_prompts(["cat", "dog"], pipe, SETTINGS)
    assert prompt_doubts(["cat", "dog"], pipe, SETTINGS) == []


def test_an_ood_prompt_that_is_cut_to_an_id_prompt_is_refused(pipe):
    settings = replace(SETTINGS, ood_labels=("bird", f"{LONG}small bird"))
    check_prompts(["cat"], pipe, settings)
    with pytest.raises(ValueError, match=r"the OOD prompt 'a photo of a very very .* and the ID prompt .* are one"):
        check_prompts(["cat", f"{LONG}small cat"], pipe, settings)
    with pytest.raises(ValueError, match="are one for the text encoder, which reads"):
        check_prompts(["cat"], pipe, replace(SETTINGS, prompt=f"{LONG} {{}}"))


def test_prompts_that_are_cut_are_told(pipe):
    (doubt,) = prompt_doubts(["cat", f"{LONG}small cat"], pipe, SETTINGS)
    assert doubt.startswith("1 prompts are cut after ") and doubt.endswith("...': shorten them")
    (doubt,) = prompt_doubts(["cat"], pipe, replace(SETTINGS, ood_labels=(LONG, "bird"), ood_prompt="{}"))
    assert "1 prompts are cut after" in doubt


def test_classes_of_one_prompt_are_told(pipe):
    settings = replace(SETTINGS, id_labels={"n1": "crane", "n2": "crane"})
    assert prompt_doubts(["n1", "n2", "cat"], pipe, settings) == [
        "the classes 'n1' and 'n2' have one prompt, 'a photo of a crane': tell them apart by --class-names"
    ]
    doubts = prompt_doubts([f"{LONG}cat", f"{LONG}dog"], pipe, SETTINGS)
    assert len(doubts) == 2 and "have one prompt" in doubts[1]


@pytest.mark.parametrize("name", ["0", "17", "-1", "n99999999", "3_4"])
def test_classes_without_words_are_told(name, pipe):
    (doubt,) = prompt_doubts(["cat", name], pipe, SETTINGS)
    assert doubt.startswith(f"1 of 2 classes have no words but ['{name}'], so that a prompt is 'a photo of a {name}'")
    assert prompt_doubts(["cat", name], pipe, replace(SETTINGS, id_labels={name: "dog"})) == []
