import hashlib
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from hypothesis import example, given, strategies as st
from scipy.stats import chisquare

from sona_pipeline.data import sample
from sona_pipeline.data.image_set import ImageSet
from sona_pipeline.generation.plan import check_settings, folder_name, plan_outliers
from sona_pipeline.generation.settings import GenerationSettings

LABELS = ("bag", "sandal", "boot")
SETTINGS = GenerationSettings(ood_labels=LABELS)


def image_set(keys, classes=("cat", "dog")) -> ImageSet:
    return ImageSet(tuple(keys), tuple(k % len(classes) for k in range(len(keys))), tuple(classes), None)


def image_of_key(key: str, settings: GenerationSettings, share: int) -> tuple:
    """What is to be made of one image, worked out with whole numbers from what the docstrings say.

    `share` is the least strength in percent.
    """
    digest = hashlib.sha256(f"{settings.seed}/{key}".encode()).hexdigest()
    step, label, seed = (int(digest[k : k + 16], 16) for k in (0, 16, 32))
    steps = [s for s in range(1, settings.num_inference_steps + 1) if s >= share * settings.num_inference_steps / 100]
    stop_step = next(s for k, s in enumerate(steps, start=1) if step * len(steps) < k * 2**64)
    count = len(settings.ood_labels)
    ood_label = next(name for k, name in enumerate(settings.ood_labels) if label * count < (k + 1) * 2**64)
    return f"cat/{hashlib.sha256(key.encode()).hexdigest()[:16]}.png", stop_step, ood_label, seed // 2


@given(
    keys=st.lists(st.text(), unique=True, min_size=1, max_size=8),
    seed=st.integers(0, 9),
    steps=st.integers(1, 99),
    share=st.integers(0, 100),
)
@example(keys=["a"], seed=0, steps=50, share=14)  # 0.14 * 50 is 7.000000000000001
def test_draws_are_three_numbers_of_the_hash_of_seed_and_key(keys, seed, steps, share):
    settings = replace(SETTINGS, seed=seed, num_inference_steps=steps, min_strength=share / 100)
    plan = plan_outliers(image_set(keys, ["cat"]), settings)
    assert [item.index for item in plan] == list(range(len(keys)))
    found = [(item.file_name, item.stop_step, item.ood_label, item.seed) for item in plan]
    assert found == [image_of_key(key, settings, share) for key in keys]


def test_one_draw_worked_out_by_hand():
    # sha256sum of "0/a": d3216b8dc7c46489 92396ebbe8e88a1d 4d4fcaf12e626ea7 ...; of "a": ca978112ca1bbdca ...
    # 0xd321 / 0x10000 = 0.8247, and 50 times that is 41.2; 0x9239 / 0x10000 = 0.571, and three times that is 1.7.
    item = plan_outliers(image_set(["a"]), SETTINGS)[0]
    assert item.file_name == "cat/ca978112ca1bbdca.png"
    assert (item.stop_step, item.ood_label) == (42, "sandal")
    assert item.seed == 0x4D4FCAF12E626EA7 // 2


def by_key(plan) -> dict:
    return {plan.images.keys[item.index]: replace(item, index=0) for item in plan}


def test_an_outlier_follows_from_seed_and_key_whatever_the_other_images_are():
    images = sample.id_images("train")
    whole = by_key(plan_outliers(images, SETTINGS))
    assert len(whole) == 1500
    chosen = np.random.default_rng(0).permutation(1500)[:400].tolist()
    part = by_key(plan_outliers(images.take(chosen), SETTINGS))
    assert part == {images.keys[index]: whole[images.keys[index]] for index in chosen}


def test_another_seed_is_another_draw_under_the_same_file_names():
    images = image_set([f"{k}" for k in range(1000)])
    one, other = plan_outliers(images, SETTINGS), plan_outliers(images, replace(SETTINGS, seed=1))
    assert [item.file_name for item in one] == [item.file_name for item in other]
    assert np.mean(one.stop_steps == other.stop_steps) < 0.06
    assert np.mean(one.labels == other.labels) == pytest.approx(1 / 3, abs=0.06)
    assert not set(one.seeds.tolist()) & set(other.seeds.tolist())


def test_an_image_keeps_its_place_in_the_schedule_when_the_number_of_steps_changes():
    images = sample.id_images("train")
    long, short = plan_outliers(images, SETTINGS), plan_outliers(images, replace(SETTINGS, num_inference_steps=20))
    assert np.abs(long.stop_steps / 50 - short.stop_steps / 20).max() <= 1 / 20
    assert long.labels.tolist() == short.labels.tolist()
    assert long.seeds.tolist() == short.seeds.tolist()


def test_stop_steps_and_labels_are_uniform_and_independent():
    plan = plan_outliers(image_set([f"key {k}" for k in range(20000)]), SETTINGS)
    steps = np.bincount(plan.stop_steps, minlength=51)
    assert steps[0] == 0
    assert chisquare(steps[1:]).pvalue > 0.001
    assert chisquare(np.bincount(plan.labels, minlength=3)).pvalue > 0.001
    assert chisquare(np.bincount(3 * (plan.stop_steps - 1) + plan.labels, minlength=150)).pvalue > 0.001
    assert chisquare(np.bincount(plan.seeds >> 57, minlength=64)).pvalue > 0.001
    assert plan.seeds.min() >= 0
    assert len(set(plan.seeds.tolist())) == len(set(plan.hashes.tolist())) == 20000


@pytest.mark.parametrize("steps", [1, 2, 1000])
def test_stop_steps_reach_from_1_to_the_number_of_steps(steps):
    plan = plan_outliers(image_set([f"{k}" for k in range(20000)]), replace(SETTINGS, num_inference_steps=steps))
    assert (plan.stop_steps.min(), plan.stop_steps.max()) == (1, steps)


def test_unet_rows_are_three_a_step():
    plan = plan_outliers(image_set([f"{k}" for k in range(7)]), SETTINGS)
    assert plan.unet_rows == 3 * sum(item.stop_step for item in plan)
    assert plan_outliers(image_set(["a", "b"]), replace(SETTINGS, num_inference_steps=1)).unet_rows == 6


def test_close_and_far_labels_are_the_tenth_that_is_most_and_least_similar():
    labels = tuple(f"label {k}" for k in range(20))
    images = image_set([f"{k}" for k in range(300)])
    similarity = np.stack([np.arange(20.0), -np.arange(20.0)])
    for choice, first, second in (("close", {18, 19}, {0, 1}), ("far", {0, 1}, {18, 19})):
        settings = GenerationSettings(ood_labels=labels, label_choice=choice)
        plan = plan_outliers(images, settings, similarity)
        assert set(plan.labels[0::2].tolist()) == first
        assert set(plan.labels[1::2].tolist()) == second
        with pytest.raises(ValueError, match="needs similarities"):
            plan_outliers(images, settings)


def members(plan, size: int) -> dict[str, frozenset]:
    return {batch.name: frozenset(plan.images.keys[k] for k in batch.indices) for batch in plan.batches(size)}


@pytest.mark.parametrize("size", [1, 7, 64, 1499, 1500, 4000])
def test_batches_part_the_images_into_few_that_are_no_larger_than_asked(size):
    plan = plan_outliers(sample.id_images("train"), SETTINGS)
    batches = plan.batches(size)
    assert sorted(np.concatenate([batch.indices for batch in batches])) == list(range(1500))
    assert max(len(batch.indices) for batch in batches) == min(size, 1500)
    assert len({batch.name for batch in batches}) == len(batches) == -(-1500 // size)


def test_stop_steps_in_a_batch_are_as_near_as_sorting_brings_them():
    plan = plan_outliers(sample.id_images("train"), SETTINGS)
    spans = sorted(
        (int(plan.stop_steps[batch.indices].max()), int(plan.stop_steps[batch.indices].min()))
        for batch in plan.batches(64)
    )
    in_order = sorted(plan.stop_steps.tolist(), reverse=True)
    chunks = [in_order[start : start + 64] for start in range(0, 1500, 64)]
    assert spans == sorted((chunk[0], chunk[-1]) for chunk in chunks)


def test_batches_of_a_way_whose_images_share_labels_have_few_of_them():
    images = sample.id_images("train")
    plan = plan_outliers(images, replace(SETTINGS, way="sega"))
    pairs = list(zip(images.labels, plan.labels.tolist()))
    changes = [len({pairs[k] for k in batch.indices}) - 1 for batch in plan.batches(20)]
    assert sum(changes) <= len(set(pairs)) - 1 and len(changes) == 75
    order = np.random.default_rng(0).permutation(1500).tolist()
    other = plan_outliers(images.take(order), plan.settings)
    assert list(members(plan, 20).items()) == list(members(other, 20).items())


def test_batches_do_not_depend_on_the_order_of_the_images():
    images = sample.id_images("train")
    order = np.random.default_rng(0).permutation(1500).tolist()
    plan, other = plan_outliers(images, SETTINGS), plan_outliers(images.take(order), SETTINGS)
    assert list(members(plan, 64).items()) == list(members(other, 64).items())


def test_a_batch_is_named_after_its_members():
    plan = plan_outliers(image_set([f"{k}" for k in range(9)]), SETTINGS)
    more = plan_outliers(image_set([f"{k}" for k in range(5, 20)]), SETTINGS)
    one, same = plan.batch(np.array([5, 7])), more.batch(np.array([0, 2]))
    assert one.name == same.name
    assert re.fullmatch(r"[0-9a-f]{16}", one.name)
    assert len({plan.batch(np.array(some)).name for some in ([5, 7], [5], [7], [5, 7, 8], [0, 1])}) == 5


def test_the_order_of_batches_is_not_that_of_their_stop_steps():
    plan = plan_outliers(sample.id_images("train"), SETTINGS)
    steps = [plan.stop_steps[batch.indices].mean() for batch in plan.batches(16)]
    assert abs(np.corrcoef(steps, np.arange(len(steps)))[0, 1]) < 0.3
    assert [b.name for b in plan.batches(16)] == [b.name for b in plan_outliers(plan.images, SETTINGS).batches(16)]


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("cat", "cat"),
        ("tench, Tinca tinca", "tench,%20Tinca%20tinca"),
        ("a/b\\c", "a%2fb%5cc"),
        (".hidden", "%2ehidden"),
        ("..", "%2e%2e"),
        ("a.b", "a.b"),
        ("100%", "100%25"),
        ("train", "%74rain"),
        ("Test", "%54est"),
        ("bullet_train", "bullet_%74rain"),
        ("validation", "%76alidation"),
        ("eval", "%65val"),
        ('a:b*c?d"e<f>g|h', "a%3ab%2ac%3fd%22e%3cf%3eg%7ch"),
        ("tab\tnew\nline", "tab%09new%0aline"),
        ("ünï", "ünï"),
    ],
)
def test_folder_names_escape_what_trips_others(name, folder):
    assert folder_name(name) == folder


class_names = st.text(
    st.sampled_from("aetTrRiInNsSvVlLdD. %/2567") | st.characters(codec="utf-8"), min_size=1, max_size=12
)


@given(name=class_names)
def test_a_class_can_be_read_back_from_its_folder_so_that_no_two_share_one(name):
    assert unquote(folder_name(name)) == name


@given(name=class_names)
def test_folder_names_hold_no_split_of_datasets_no_space_and_no_path(name):
    folder = folder_name(name)
    assert not re.search(r"(?i)train|test|val|dev", re.sub("%..", "%", folder))
    assert not set(folder) & set(' /\\:*?"<>|\n\r\t\0')
    assert not folder.startswith(".")


def test_classes_that_a_disk_takes_for_one_have_folders_of_their_own():
    plan = plan_outliers(image_set(["a", "b", "c", "d"], ["Cat", "cat", "con", "数" * 100]), SETTINGS)
    folders = [item.file_name.split("/")[0] for item in plan]
    assert len({folder.casefold() for folder in folders}) == 4
    assert folders[2] == "%63on"
    assert all(len(folder.encode()) <= 200 for folder in folders)


def test_the_outliers_of_a_class_without_a_name_stay_in_the_set():
    name = plan_outliers(image_set(["a"], [""]), SETTINGS)[0].file_name
    assert (Path("set") / name).parts[0] == "set"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ood_labels": ()}, "no OOD labels"),
        ({"ood_labels": ("bag", "DOG", "cat")}, r"OOD labels \['DOG', 'cat'\] are ID classes as well"),
        ({"id_labels": {"cat": "Bag"}}, r"OOD labels \['bag'\] are ID classes as well"),
        ({"label_choice": "near"}, "`label_choice` is 'near', but has to be one of random, close, far"),
        ({"resize_mode": "stretch"}, "`resize_mode` is 'stretch', but has to be one of crop, pad, squash"),
        ({"guidance_scale": float("nan")}, "guidance scale is nan"),
        ({"guidance_scale": float("inf")}, "guidance scale is inf"),
        ({"mask_granularity": "pixel"}, "mask_granularity.*pixel"),
        ({"mask_threshold": 1.5}, "mask_threshold.*1.5"),
        ({"prompt": "a photo"}, r"the prompt 'a photo' needs just one \{\}"),
        ({"prompt": "a {label}"}, r"the prompt 'a \{label\}' needs just one \{\}"),
        ({"prompt": "a { }"}, r"needs just one \{\}"),
        ({"prompt": "a {"}, r"needs just one \{\}"),
        ({"prompt": "a {{}}"}, r"needs just one \{\}"),
        ({"prompt": "a {.name}"}, r"needs just one \{\}"),
        ({"prompt": "a {0[name]}"}, r"needs just one \{\}"),
        ({"prompt": "a {0[0]}"}, r"needs just one \{\}"),
        ({"prompt": "a {} and a {}"}, r"needs just one \{\}"),
        ({"num_inference_steps": 0}, "`num_inference_steps` is 0, but has to be 1 or more"),
        ({"ood_labels": ("bag", " ")}, "or a blank one"),
        ({"ood_prompt": "thing"}, r"the prompt 'thing' needs just one \{\}"),
        ({"reject": ("contrast<0.1", "beauty<0.3")}, "'beauty<0.3' is no bound"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(change, message):
    images = image_set(["a", "b"])
    check_settings(images, SETTINGS)
    with pytest.raises(ValueError, match=message):
        check_settings(images, replace(SETTINGS, **change))
    with pytest.raises(ValueError, match=message):
        plan_outliers(images, replace(SETTINGS, **change))


def test_images_without_classes_or_with_equal_keys_are_refused():
    with pytest.raises(ValueError, match="the images have no classes"):
        check_settings(ImageSet(("a", "b"), (), (), None), SETTINGS)
    with pytest.raises(ValueError, match="the same key"):
        check_settings(image_set(["a", "b", "a"]), SETTINGS)


def test_a_class_that_goes_by_another_word_frees_its_name_for_a_label():
    check_settings(image_set(["a", "b"]), replace(SETTINGS, ood_labels=("dog",), id_labels={"dog": "puppy"}))


def test_prompts_are_filled_in_with_words_not_with_names():
    settings = replace(SETTINGS, id_labels={"n02123045": "tabby {}"}, prompt="a photo of a {0}, {0}")
    assert settings.id_prompt_of("n02123045") == "a photo of a tabby {}, tabby {}"
    assert settings.id_prompt_of("dog") == "a photo of a dog, dog"
    assert settings.ood_prompt_of("bag") == "a photo of a bag, bag"
    assert replace(settings, ood_prompt="{}").ood_prompt_of("a red bag") == "a red bag"


def test_labels_are_drawn_evenly_from_the_bundled_sample():
    plan = plan_outliers(sample.id_images("train"), GenerationSettings(ood_labels=sample.OOD_LABELS))
    counts = Counter(item.ood_label for item in plan)
    assert chisquare([counts[name] for name in sample.OOD_LABELS]).pvalue > 0.001
    assert chisquare(np.bincount(plan.stop_steps, minlength=51)[1:]).pvalue > 0.001
