"""OOD meanings beyond one label: attributes of the ID class, blends of two prompts, embeddings from a file."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sona_pipeline import sample
from sona_pipeline.data.outlier_set import read_rows, read_settings
from sona_pipeline.generation.checkpoint import load_pipeline
from sona_pipeline.generation.embeddings import GivenEmbeddings, embedding_names
from sona_pipeline.generation.generate import generate_outliers
from sona_pipeline.generation.make import OutlierMaker
from sona_pipeline.generation.ood_labels import labels_of
from sona_pipeline.generation.plan import plan_outliers
from sona_pipeline.generation.prompts import check_prompts
from sona_pipeline.generation.settings import GenerationSettings, LabelSettings, settings_in
from sona_pipeline.generation.words import prompts_with

SETTINGS = GenerationSettings(("bag", "sandal"), num_inference_steps=3)


@pytest.fixture(scope="module")
def images():
    return sample.id_images("train").take(range(0, 1500, 15))


def embeds(maker, texts):
    return maker.prompts(texts)["prompt_embeds"]


def meanings(maker, items):
    return maker.meanings_of(items)["prompt_embeds"]


def planned(images, **changes):
    return list(plan_outliers(images, replace(SETTINGS, **changes)))


def test_attributes_go_with_the_word_of_the_class(pipe, images):
    settings = replace(
        SETTINGS, ood_labels=("broken", "wet"), ood_prompt="a photo of a {} {id}", id_labels={"shirt": "blouse"}
    )
    maker = OutlierMaker(pipe, plan_outliers(images, settings))
    items = list(maker.plan)
    _, prompts = maker.prompts_of(items)
    for item, prompt in zip(items, prompts):
        word = {"shirt": "blouse"}.get(images.label_name(item.index), images.label_name(item.index))
        assert prompt == f"a photo of a {item.ood_label} {word}" and item.ood_label in ("broken", "wet")
    assert torch.equal(meanings(maker, items[:4]), embeds(maker, prompts[:4]))
    assert len(settings.all_ood_prompts(images.classes)) == 2 * len(images.classes)
    check_prompts(images.classes, pipe, settings)
    with pytest.raises(ValueError, match="the OOD prompt 'a photo of a shirt' and the ID prompt"):
        check_prompts(["shirt", "t-shirt"], pipe, replace(SETTINGS, ood_labels=("a photo",), ood_prompt="{} of a {id}"))


@pytest.mark.parametrize("prompt", ["a {} {di}", "a {id}", "{} {}", "a {0}"])
def test_templates_with_other_places_are_refused(images, prompt):
    with pytest.raises(ValueError, match=r"needs just one \{\}, for the label, and may have \{id\}"):
        plan_outliers(images, replace(SETTINGS, ood_prompt=prompt))
    with pytest.raises(ValueError, match=r"'a \{\} \{id\}' needs just one \{\}, for the label$"):
        plan_outliers(images, replace(SETTINGS, prompt="a {} {id}"))


def test_a_blend_of_classes_lies_between_two_others(pipe, images):
    items = planned(images, blend="classes")
    pairs = {item.meanings for item in items}
    for item in items:
        own = images.label_name(item.index)
        assert len(set(item.meanings)) == 2 and own not in item.meanings and set(item.meanings) <= set(images.classes)
        assert item.ood_label == " + ".join(item.meanings)
    assert len(pairs) > 20  # of thirty ordered ones
    maker = OutlierMaker(pipe, plan_outliers(images, replace(SETTINGS, blend="classes")))
    found = meanings(maker, items[:5])
    for item, meaning in zip(items, found):
        both = embeds(maker, [f"a photo of a {word}" for word in item.meanings])
        torch.testing.assert_close(meaning, (both[0] + both[1]) / 2)


def test_a_blend_of_labels_has_the_planned_label_and_another_class(images):
    plain, blended = planned(images), planned(images, blend="labels")
    for one, item in zip(plain, blended):
        label, word = item.meanings
        assert (label,) == one.meanings and word != images.label_name(item.index) and word in images.classes
        assert (item.stop_step, item.seed, item.file_name) == (one.stop_step, one.seed, one.file_name)


def test_blends_that_cannot_be_are_refused(images):
    two = images.take([k for k, label in enumerate(images.labels) if label < 2]).with_classes(images.classes[:2])
    with pytest.raises(ValueError, match="a blend of 'classes' needs 3 classes or more, and the images have 2"):
        plan_outliers(two, replace(SETTINGS, blend="classes"))
    with pytest.raises(ValueError, match="the way 'sega' takes prompts only: leave `blend` out"):
        plan_outliers(images, replace(SETTINGS, blend="labels", way="sega"))
    with pytest.raises(ValueError, match="`blend` is 'half', but has to be one of none, classes, labels"):
        plan_outliers(images, replace(SETTINGS, blend="half"))


@pytest.fixture
def file(pipe, tmp_path):
    """A whole prompt, and a vector."""
    whole = pipe.encode_texts(["a photo of a sandal"], pipe.device)["prompt_embeds"][0]
    path = tmp_path / "embeddings.safetensors"
    save_file({"whole": whole.contiguous(), "vector": torch.full((whole.shape[1],), 0.5)}, path)
    return path


def test_embeddings_of_a_file_stand_for_prompts(pipe, images, file, tmp_path):
    settings = replace(SETTINGS, ood_labels=("vector", "whole"), ood_embeddings=str(file))
    maker = OutlierMaker(pipe, plan_outliers(images, settings))
    items = list(maker.plan)
    (sandal,) = embeds(maker, ["a photo of a sandal"])
    (other,) = prompts_with(pipe, "a photo of a {}", torch.full((1, 64), 0.5))
    for item, meaning in zip(items[:12], meanings(maker, items[:12])):
        torch.testing.assert_close(meaning, sandal if item.ood_label == "whole" else other)
    assert {item.ood_label for item in items} == {"whole", "vector"}
    generate_outliers(images.take(range(4)), pipe, tmp_path / "set", settings)
    assert {row["ood_label"] for row in read_rows(tmp_path / "set")} <= {"whole", "vector"}


def test_a_set_knows_its_embeddings_by_their_content_and_tells_their_name(pipe, images, file, tmp_path):
    settings = replace(SETTINGS, ood_labels=("vector",), ood_embeddings=str(file))
    generate_outliers(images.take(range(2)), pipe, tmp_path / "set", settings)
    record = read_settings(tmp_path / "set")
    assert record["ood_embeddings"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert record["notes"]["ood_embeddings"] == "embeddings.safetensors"
    assert settings_in(record)["ood_embeddings"] == "embeddings.safetensors"
    moved = file.rename(tmp_path / "moved.safetensors")
    generate_outliers(images.take(range(4)), pipe, tmp_path / "set", replace(settings, ood_embeddings=str(moved)))
    assert len(list(read_rows(tmp_path / "set"))) == 4
    save_file({"vector": torch.zeros_like(load_file(moved)["vector"])}, file)
    with pytest.raises(ValueError, match="made with other settings: ood_embeddings"):
        generate_outliers(images.take(range(4)), pipe, tmp_path / "set", settings)


def test_a_thousand_vectors_take_the_room_of_vectors(pipe, file):
    width = load_file(file)["vector"].shape[0]
    vectors = torch.randn(1000, width, generator=torch.Generator().manual_seed(0))
    save_file({f"{k:03d}": vector for k, vector in enumerate(vectors)}, file)
    settings = replace(SETTINGS, ood_labels=tuple(f"{k:03d}" for k in range(1000)), ood_embeddings=str(file))
    given = GivenEmbeddings(pipe, file, settings)
    assert sum(value.untyped_storage().nbytes() for value in given.stored.values()) == 1000 * width * 4
    prompts = given(["007", "990", "007"])["prompt_embeds"]
    torch.testing.assert_close(prompts, prompts_with(pipe, "a photo of a {}", vectors[[7, 990, 7]]))


def test_a_whole_prompt_from_a_file_makes_the_outlier_of_that_prompt(pipe, images, file, tmp_path):
    few = images.take(range(3))
    by_file = replace(SETTINGS, ood_labels=("whole",), ood_embeddings=str(file))
    generate_outliers(few, pipe, tmp_path / "file", by_file)
    generate_outliers(few, pipe, tmp_path / "prompt", replace(SETTINGS, ood_labels=("sandal",)))
    hashes = [[row["sha256"] for row in read_rows(tmp_path / name)] for name in ("file", "prompt")]
    assert hashes[0] == hashes[1]


def test_bad_embeddings_are_refused(pipe, images, file, tmp_path):
    def given(**changes):
        settings = replace(SETTINGS, **{"ood_embeddings": str(file), "ood_labels": ("whole",)} | changes)
        return GivenEmbeddings(pipe, Path(settings.ood_embeddings), settings)

    with pytest.raises(ValueError, match=r"has no embedding of \['bag'\]: name the labels"):
        given(ood_labels=("bag", "whole"))
    with pytest.raises(FileNotFoundError, match="does not exist: give a safetensors file"):
        given(ood_embeddings=str(tmp_path / "none"))
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"{}")
    with pytest.raises(ValueError, match="is no safetensors file"):
        embedding_names(bad)
    for value in (torch.zeros(3), torch.zeros(2, 2, 2), torch.full((16,), torch.nan)):
        save_file({"whole": value}, bad)
        with pytest.raises(ValueError, match=r"'whole' in .* has the shape .* are needed for this model"):
            given(ood_embeddings=str(bad))
    settings = replace(SETTINGS, ood_labels=("whole",), ood_embeddings=str(file))
    with pytest.raises(ValueError, match="the way 'diffedit' takes prompts only: leave `ood_embeddings` out"):
        plan_outliers(images, replace(settings, way="diffedit"))
    with pytest.raises(ValueError, match="embeddings have no words to be 'close' by"):
        plan_outliers(images, replace(settings, label_choice="close"))


def test_embeddings_exclude_other_meanings(images, file):
    settings = replace(SETTINGS, ood_labels=("whole",), ood_embeddings=str(file))
    with pytest.raises(ValueError, match="embeddings are meanings by themselves"):
        plan_outliers(images, replace(settings, blend="labels"))
    with pytest.raises(ValueError, match=r"leave \{id\} out of `ood_prompt`"):
        plan_outliers(images, replace(settings, ood_prompt="a {} {id}"))


def test_embeddings_go_with_a_unet_in_bfloat16(images, file):
    half = load_pipeline("tiny", "cpu", dtype="bfloat16", scheduler="unipc")
    half.set_progress_bar_config(disable=True)
    for way in ("text", "sona", "ledits"):
        settings = replace(SETTINGS, ood_labels=("whole", "vector"), ood_embeddings=str(file), way=way)
        maker = OutlierMaker(half, plan_outliers(images, settings))
        work = maker.denoise(maker.encode(maker.read(maker.plan.batches(3)[0])))
        assert work.outlier_latents.isfinite().all()


def test_one_source_of_meanings_is_named(file):
    assert labels_of(LabelSettings(ood_embeddings=file), "tiny", {"shirt": ("shirt",)}) == (("vector", "whole"), [])
    both = LabelSettings(ood_labels="labels.txt", ood_embeddings=file)
    with pytest.raises(ValueError, match="--ood-labels and --ood-embeddings exclude each other"):
        labels_of(both, "tiny", {"shirt": ("shirt",)})
