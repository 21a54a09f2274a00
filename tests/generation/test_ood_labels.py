import json

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from tiny_pipelines import build
from transformers import BertConfig, BertModel, BertTokenizer, CLIPConfig, CLIPModel

from sona_pipeline.data.class_names import synsets
from sona_pipeline.generation.checkpoint import load_pipeline
from sona_pipeline.generation.ood_labels import (
    Collision,
    find_collisions,
    labels_of,
    pipeline_encoder,
    read_labels,
    read_lines,
    similarities,
    text_encoder,
    usable_labels,
)
from sona_pipeline.generation.settings import LabelSettings


def collision(label, id_class) -> Collision | None:
    """The collision of one label with one class, each given by a name or several."""
    names, id_names = ((x,) if isinstance(x, str) else x for x in (label, id_class))
    found = find_collisions([names], {"the class": id_names})
    assert len(found) <= 1
    assert all((c.label, c.id_class) == (names[0], "the class") for c in found)
    return found[0] if found else None


# Collisions


@pytest.mark.parametrize(
    ("label", "id_class"),
    [
        ("missile", "missile"),
        ("Missiles", "missile"),
        ("tiger_shark", "Tiger  Sharks"),
        ("fire-truck", "fire truck"),
        (("rocket thing", "missile"), "missile"),
        ("missile", ("rocket thing", "missile")),
        (("rocket thing", "missile"), ("flying thing", "missiles")),
    ],
)
def test_same_name(label, id_class):
    assert collision(label, id_class).reason == "the same name"


@pytest.mark.parametrize(
    ("label", "id_class"),
    [
        ("projectile", "missile"),
        ("missile", "projectile"),
        ("automobile", "car"),
        ("aeroplane", "airplane"),
        ("Motortrucks", "truck"),
        (("wug", "projectile"), ("dax", "missile")),
    ],
)
def test_synonyms_through_wordnet(label, id_class):
    reason = collision(label, id_class).reason
    shared = [
        f"a synonym ({wnid})"
        for a in np.atleast_1d(label)
        for b in np.atleast_1d(id_class)
        for wnid in synsets(a) & synsets(b)
    ]
    assert reason in shared


def test_names_that_contain_each_other():
    assert collision("tiger shark", "shark").reason == "contains 'shark'"
    assert collision("shark", "tiger shark").reason == "is part of its name"
    assert collision("Sharks", "tiger_shark").reason == "is part of its name"
    assert collision("wug truck", ("lorry", "truck")).reason == "contains 'truck'"
    assert collision(("wug", "blue wug"), ("dax", "big blue wug toy")).reason == "is part of its name"


def test_names_of_six_words_are_found_in_longer_ones():
    name = "one two three four five six"
    assert collision(f"zero {name} seven", name).reason == f"contains {name!r}"
    assert collision(name, f"zero {name} seven").reason == "is part of its name"


@pytest.mark.parametrize(
    "caption",
    [
        "A photo of a Fire-Truck, parked in front of the old station by the harbour on a rainy day in late autumn",
        "fire trucks",
        "two of the fire\ttrucks",
    ],
)
def test_captions_that_contain_a_class(caption):
    assert collision(caption, "fire truck").id_class == "the class"
    assert collision(caption, ("wug", "fire_truck"))


@pytest.mark.parametrize(
    ("label", "id_class"),
    [
        ("catfish", "cat"),
        ("cat", "catfish"),
        ("truck fire", "fire truck"),
        ("fire on a truck", "fire truck"),
        ("tiger", "shark"),
        ("hammerhead shark", "tiger shark"),
        ("bu", "bus"),
        ("a photo of a forest", "a photo of a barn"),
    ],
)
def test_names_that_do_not_collide(label, id_class):
    assert collision(label, id_class) is None


def test_collisions_come_in_the_order_of_the_labels_and_name_their_class():
    labels = [("oak",), ("tiger shark",), ("tree", "missile"), ("missile",), ("lamp",)]
    found = find_collisions(labels, {"n1": ("shark",), "n2": ("projectile", "missile")})
    assert [(c.label, c.id_class) for c in found] == [("tiger shark", "n1"), ("tree", "n2"), ("missile", "n2")]
    assert find_collisions(labels, {}) == []


WORDS = ["blick", "dax", "wug", "fep"]  # WordNet has none of these
names = st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(tuple)
things = st.lists(names, min_size=1, max_size=2)


def within(part: tuple[str, ...], whole: tuple[str, ...]) -> bool:
    return any(whole[start : start + len(part)] == part for start in range(len(whole)))


@given(things, st.lists(things, max_size=3))
def test_containment_agrees_with_a_double_loop(label, classes):
    def related(thing):
        return any(within(a, b) or within(b, a) for a in label for b in thing)

    id_names = {f"class {k}": tuple(map(" ".join, thing)) for k, thing in enumerate(classes)}
    found = find_collisions([tuple(map(" ".join, label))], id_names)
    assert bool(found) == any(map(related, classes))
    for c in found:
        assert related(classes[int(c.id_class.split()[1])])
        same = any(a == b for thing in classes for a in label[:1] for b in thing)
        assert not same or c.reason == "the same name"


def test_words_of_that_loop_are_in_no_synset():
    assert not any(map(synsets, WORDS))


def test_usable_labels_leave_collisions_out():
    labels = [("oak",), ("Sharks",), ("tiger shark",), ("projectile",), ("elm", "tree"), ("oak",)]
    id_names = {"a": ("shark",), "b": ("missile",)}
    kept, collisions = usable_labels(labels, id_names)
    assert kept == ("oak", "elm")
    assert [c.label for c in collisions] == ["Sharks", "tiger shark", "projectile"]
    kept, collisions = usable_labels(labels, id_names, keep_collisions=True)
    assert kept == ("oak", "tiger shark", "projectile", "elm")
    assert [(c.label, c.id_class, c.reason) for c in collisions] == [("Sharks", "a", "the same name")]


def test_labels_that_all_collide_are_refused():
    labels = [("shark",), ("missiles",)]
    with pytest.raises(
        ValueError, match=r"no OOD labels are left of 2, since 'shark' collides with 'a' \(the same name\)"
    ):
        usable_labels(labels, {"a": ("shark",), "b": ("missile",)})
    with pytest.raises(ValueError, match="no OOD labels are left of 1"):
        usable_labels(labels[:1], {"a": ("shark",)}, keep_collisions=True)
    assert usable_labels([("tiger shark",)], {"a": ("shark",)}, keep_collisions=True) == (("tiger shark",), [])


def test_no_labels_are_refused():
    with pytest.raises(ValueError):
        usable_labels([], {"a": ("shark",)})


# Label files


def test_labels_of_a_file_with_synonyms_and_wordnet_ids(tmp_path):
    (tmp_path / "labels.txt").write_text("oak\n\n  fire_truck, lorry \n \nn01440764\noak\nünï\n", encoding="utf-8")
    found = [("oak",), ("fire truck", "lorry"), ("tench", "Tinca tinca"), ("ünï",)]
    assert read_labels(tmp_path / "labels.txt") == found
    assert read_labels(str(tmp_path / "labels.txt")) == found


def test_lines_are_left_as_they_are_but_for_blanks_around_them(tmp_path):
    (tmp_path / "prompts.txt").write_text("\n a big, red oak_tree\r\n\t\nan elm\na big, red oak_tree")
    assert read_lines(tmp_path / "prompts.txt") == ["a big, red oak_tree", "an elm"]


@pytest.mark.parametrize("text", ["", "\n", " \n\t\n"])
@pytest.mark.parametrize("read", [read_labels, read_lines])
def test_empty_and_missing_files_are_refused(read, text, tmp_path):
    (tmp_path / "labels.txt").write_text(text)
    with pytest.raises(ValueError, match=r"no OOD labels in .*labels\.txt"):
        read(tmp_path / "labels.txt")
    for name in ("nowhere.txt", "."):
        with pytest.raises(FileNotFoundError, match="does not exist: give a text file"):
            read(tmp_path / name)


def test_labels_of_imagenet_without_the_classes_of_a_small_data_set():
    labels = read_labels("imagenet")
    assert len(labels) == 1000
    kept, collisions = usable_labels(labels, {"shark": ("shark",), "missile": ("missile",)})
    lost = {c.label: c.id_class for c in collisions}
    assert lost == {
        "great white shark": "shark",
        "tiger shark": "shark",
        "hammerhead": "shark",
        "missile": "missile",
        "projectile": "missile",
    }
    assert set(kept) == {names[0] for names in labels} - set(lost)


# Similarities


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_similarities_are_cosines(dtype):
    generator = torch.Generator().manual_seed(0)
    vectors = {text: torch.randn(5, generator=generator).to(dtype) * 30 for text in "abcdefg"}
    found = similarities(lambda texts: torch.stack([vectors[text] for text in texts]), "abc", "defga")
    assert found.shape == (3, 5)
    for i, one in enumerate("abc"):
        for j, other in enumerate("defga"):
            cosine = torch.cosine_similarity(vectors[one].float(), vectors[other].float(), dim=0)
            assert found[i, j] == pytest.approx(float(cosine), abs=1e-5)
    assert found[0, 4] == pytest.approx(1)


# Encoders


@pytest.fixture(scope="module")
def tiny():
    return load_pipeline("tiny", "cpu")


def test_pipeline_encoder_gives_the_pooled_output_of_each_text_alone(tiny):
    texts = ["bag", "a photo of a very large sandal", "日本", "bag", "", "a long caption " * 40]
    found = pipeline_encoder(tiny)(texts)
    for text, row in zip(texts, found):
        ids = tiny.tokenizer(text, truncation=True, return_tensors="pt").input_ids
        expected = tiny.text_encoder(ids).pooler_output[0]
        torch.testing.assert_close(row, expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(found[0], found[3])
    assert not torch.allclose(found[0], found[1], atol=0.1)


def test_pipeline_encoder_does_not_mind_batches(tiny):
    encode = pipeline_encoder(tiny)
    texts = [f"thing {k % 290}" for k in range(600)]
    found = encode(texts)
    assert found.shape == (600, tiny.text_encoder.config.hidden_size)
    assert not found.requires_grad
    torch.testing.assert_close(found[:290], found[290:580], atol=1e-5, rtol=1e-4)
    for k in (0, 255, 256, 511, 512, 599):
        torch.testing.assert_close(found[k], encode([texts[k]])[0], atol=1e-5, rtol=1e-4)


@pytest.fixture
def bert(tmp_path):
    """A random BERT that reads four words at most, and its tokenizer, saved to a folder."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat", "dog", "big", "a"]
    tokenizer = BertTokenizer(vocab={word: k for k, word in enumerate(words)}, model_max_length=6)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=6,
        hidden_dropout_prob=0.5,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertModel(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return model, tmp_path


@torch.no_grad()
def test_text_encoder_is_the_mean_over_the_tokens_of_each_text(bert):
    model, folder = bert
    ids = {
        "cat": [2, 5, 3],
        "a big dog": [2, 8, 7, 6, 3],
        "": [2, 3],
        "a ewe": [2, 8, 1, 3],
        "cat " * 9: [2, 5, 5, 5, 5, 3],
    }
    found = text_encoder(str(folder))(list(ids))
    for row, tokens in zip(found, ids.values()):
        states = model(torch.tensor([tokens])).last_hidden_state[0]
        torch.testing.assert_close(row, sum(states) / len(tokens), atol=1e-5, rtol=1e-4)


OLD = {f"pooling_mode_{name}": False for name in ("cls_token", "mean_tokens", "max_tokens", "lasttoken")}


@torch.no_grad()
@pytest.mark.parametrize(
    ("config", "place"),
    [
        (OLD | {"pooling_mode_cls_token": True, "include_prompt": True}, 0),
        (OLD | {"pooling_mode_lasttoken": True}, -1),
        (OLD | {"pooling_mode_mean_tokens": True}, slice(None)),
        ({"embedding_dimension": 8, "pooling_mode": "cls"}, 0),
        ({"embedding_dimension": 8, "pooling_mode": "mean"}, slice(None)),
    ],
)
def test_models_of_sentence_transformers_pool_as_they_say(config, place, bert):
    model, folder = bert
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 8} | config))
    ids = {"cat": [2, 5, 3], "a big dog": [2, 8, 7, 6, 3]}
    for row, tokens in zip(text_encoder(str(folder))(list(ids)), ids.values()):
        states = model(torch.tensor([tokens])).last_hidden_state[0][place]
        torch.testing.assert_close(row, states.mean(dim=0) if states.dim() == 2 else states, atol=1e-5, rtol=1e-4)


def test_a_pooling_that_is_not_known_is_told(bert):
    (bert[1] / "1_Pooling").mkdir()
    (bert[1] / "1_Pooling" / "config.json").write_text(json.dumps(OLD | {"pooling_mode_max_tokens": True}))
    with pytest.raises(ValueError, match="pools tokens by 'max': take one that does it by mean or cls or lasttoken"):
        text_encoder(str(bert[1]))


@torch.no_grad()
def test_text_encoder_takes_the_text_half_of_clip(tmp_path):
    parts = build()
    vision = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
    }
    config = CLIPConfig(text_config=parts["text_encoder"].config.to_dict(), vision_config=vision)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = CLIPModel(config).eval()
    model.save_pretrained(tmp_path)
    parts["tokenizer"].save_pretrained(tmp_path)
    texts = ["cat", "a dog"]
    for text, row in zip(texts, text_encoder(str(tmp_path))(texts)):
        ids = parts["tokenizer"](text, return_tensors="pt").input_ids
        torch.testing.assert_close(row, model.text_model(ids).last_hidden_state[0].mean(dim=0), atol=1e-5, rtol=1e-4)


def test_embedded_models_have_labels_of_their_own_without_the_id_classes():
    clothing = ("t-shirt", "trouser", "pullover", "dress", "shirt", "sneaker")
    assert labels_of(LabelSettings(), "tiny", {name: (name,) for name in clothing}) == (("bag", "sandal"), [])
    found, collisions = labels_of(LabelSettings(), "cifar", {"car": ("automobile",), "felines": ("cat",)})
    assert len(found) == 58 and not {"cat", "automobile"} & set(found) and not collisions
