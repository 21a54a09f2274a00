import json

import pytest
from hypothesis import given, strategies as st
from torchvision.models._meta import _IMAGENET_CATEGORIES

from sona_pipeline.data.class_names import (
    check_spellings,
    composed,
    imagenet_labels,
    matched,
    names_of_classes,
    normal,
    same_names,
    spoken,
    synsets,
)

CLASSES = ["n01440764", "fire_truck", "cat"]
GIVEN = {"n01440764": ("tench", "Tinca tinca"), "fire_truck": ("fire engine", "fire truck"), "cat": ("house cat",)}


@pytest.fixture
def file(tmp_path):
    def write(content, name: str = "names.txt"):
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


# Without a file


def test_wordnet_ids_become_words_and_underscores_spaces():
    assert names_of_classes(["n01440764", "fire_truck", "Cat", "ünï__côde", "ice cream"]) == {
        "n01440764": ("tench", "Tinca tinca"),
        "fire_truck": ("fire truck",),
        "Cat": ("Cat",),
        "ünï__côde": ("ünï  côde",),
        "ice cream": ("ice cream",),
    }


def test_what_only_looks_like_a_wordnet_id_is_left_alone():
    for name in ("n99999999", "n0144076", "n014407645", "N01440764", "xn01440764"):
        assert spoken(name) == (name,)


def test_commas_stand_between_synonyms():
    assert spoken("big_cat, lion ,, king of_beasts,") == ("big cat", "lion", "king of beasts")
    assert spoken("_") == ("_",)


# Class-name files


@pytest.mark.parametrize("mark", [" ", "\t", ":", ": ", ",", "   "])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_lines_that_begin_with_their_class(mark, order, file):
    lines = [f"{name}{mark}{', '.join(GIVEN[name])}" for name in CLASSES]
    assert names_of_classes(CLASSES, file("\n".join(lines[k] for k in order) + "\n")) == GIVEN


def test_lines_in_the_order_of_the_classes(file):
    assert names_of_classes(CLASSES, file("tench, Tinca tinca\n\nfire_engine,fire truck\n  house cat \n")) == GIVEN


def test_lines_in_order_of_which_only_one_begins_with_a_class(file):
    assert names_of_classes(["sea", "lion"], file("sea lion\nlion\n")) == {"sea": ("sea lion",), "lion": ("lion",)}


def test_wordnet_ids_in_a_file_become_words(file):
    assert names_of_classes(["0", "1"], file("1 cat\n0 n01440764\n")) == {"0": ("tench", "Tinca tinca"), "1": ("cat",)}


def test_json_object(file):
    joined = {name: ", ".join(names) for name, names in GIVEN.items()}
    for content in (joined, GIVEN, joined | {"fire_truck": ["fire_engine", "fire truck"]}):
        assert names_of_classes(CLASSES, file(content, "names.json")) == GIVEN


def test_json_list_in_the_order_of_the_classes(file):
    content = ["tench, Tinca tinca", "fire engine, fire truck", "house cat"]
    assert names_of_classes(CLASSES, file(content, "names.json")) == GIVEN


def test_json_list_is_never_keyed(file):
    content = ["cat, kitty", "dog, hound"]
    expected = {"cat": ("cat", "kitty"), "dog": ("dog", "hound")}
    assert names_of_classes(["cat", "dog"], file(content, "names.json")) == expected


def test_file_may_name_more_classes_than_there_are(file):
    text = "dog hound\ncat house cat\nn01440764 tench, Tinca tinca\nfire_truck: fire engine, fire truck\nbat bat\n"
    assert names_of_classes(CLASSES, file(text)) == GIVEN
    assert names_of_classes(CLASSES, file(GIVEN | {"dog": ["hound"]}, "names.json")) == GIVEN


@pytest.mark.parametrize("mark", ["\t", ":", ","])
def test_classes_that_contain_spaces(mark, file):
    classes = ["ice cream", "hot dog"]
    text = f"hot dog{mark}frankfurter\nice cream{mark}gelato, ice cream\nhamburger{mark}burger\n"
    expected = {"ice cream": ("gelato", "ice cream"), "hot dog": ("frankfurter",)}
    assert names_of_classes(classes, file(text)) == expected
    assert (
        names_of_classes(classes, file({"hot dog": "frankfurter", "ice cream": "gelato, ice cream"}, "a.json"))
        == expected
    )


def test_class_that_begins_like_another(file):
    expected = {"ice": ("frozen water",), "ice cream": ("gelato",)}
    assert names_of_classes(list(expected), file("ice: frozen water\nice cream: gelato\n")) == expected


def test_class_that_contains_a_space_before_a_space(file):
    expected = {"ice cream": ("gelato",), "hot dog": ("frankfurter",)}
    assert names_of_classes(list(expected), file("ice cream gelato\nhot dog frankfurter\n")) == expected


@pytest.mark.parametrize(
    ("content", "name"), [("cat:\ndog: hound\n", "a.txt"), ({"cat": "", "dog": "hound"}, "a.json")]
)
def test_class_without_a_name_is_refused(content, name, file):
    with pytest.raises(ValueError, match=r"has no name for the classes \['cat'\]"):
        names_of_classes(["cat", "dog"], file(content, name))


def test_synonyms_in_the_order_of_the_classes_are_no_keys(file):
    expected = {"cat": ("cat", "kitty"), "dog": ("dog", "hound")}
    assert names_of_classes(["cat", "dog"], file("cat, kitty\ndog, hound\n")) == expected


@pytest.mark.parametrize("content", [{"cat": 5}, ["cat", ["dog", 1]], "no JSON", 7])
def test_json_of_another_kind_is_refused(content, file):
    with pytest.raises(ValueError, match="give a"):
        names_of_classes(["cat", "dog"], file(content, "names.json"))


def test_byte_order_mark_is_no_part_of_a_class(file):
    assert names_of_classes(["cat"], file("\ufeffcat kitty\n")) == {"cat": ("kitty",)}


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ("one\ntwo\n", "names.txt"),
        ("one\ntwo\nthree\nfour\n", "names.txt"),
        ("cat house cat\nn01440764 tench\n", "names.txt"),
        ("", "names.txt"),
        ({"cat": "house cat", "n01440764": "tench"}, "names.json"),
        (["one", "two"], "names.json"),
        ([], "names.json"),
    ],
)
def test_file_that_fits_in_neither_way_names_classes_it_lacks(content, name, file):
    with pytest.raises(ValueError, match=rf"{name} has no name for the classes \[.*'fire_truck'.*of the 3 classes"):
        names_of_classes(CLASSES, file(content, name))


def test_json_list_of_lists_of_names(file):
    expected = {"cat": ("a", "b"), "fire_truck": ("c",), "n01440764": ("d",)}
    assert names_of_classes(list(expected), file([["a", "b"], ["c"], ["d"]], "names.json")) == expected


def test_list_of_other_things_than_names_is_refused(file):
    for content in ([1, 2, 3], [{}, {}, {}]):
        with pytest.raises(ValueError, match="for a class: give a name, or a list of names"):
            names_of_classes(CLASSES, file(content, "names.json"))


def test_missing_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"names\.txt"):
        names_of_classes(CLASSES, tmp_path / "names.txt")


# ImageNet and WordNet


def test_imagenet_labels_are_those_of_torchvision():
    labels = imagenet_labels()
    assert len(labels) == 1000
    assert labels[0] == ("tench", "Tinca tinca")
    assert labels[2][0] == "great white shark"
    explained = {"crane bird": "crane", "maillot tank suit": "maillot"}
    for names, category in zip(labels, _IMAGENET_CATEGORIES):
        assert normal(names[0]) == normal(explained.get(category, category))


def test_teddy_has_words():
    assert spoken("n04399382") == ("teddy", "teddy bear")


def test_synsets_know_every_word_of_a_synset():
    assert synsets("projectile") & synsets("missile")
    assert synsets("tench") == synsets("Tinca tinca") == {"n01440764"}
    assert synsets("Fire_Engines") == synsets("fire truck") != frozenset()
    assert not synsets("car") & synsets("shark")
    assert synsets("no such word") == synsets("") == frozenset()


# The form in which names are compared


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Tiger_Sharks", "tiger shark"),
        ("  fire-truck\t(red) ", "fire truck red"),
        ("bus", "bus"),
        ("glass", "glass"),
        ("cars", "car"),
        ("STRASSE", "strass"),
        ("Straße", "strass"),
        ("Ünï côdes", "ünï côde"),
        ("", ""),
    ],
)
def test_normal_form(name, expected):
    assert normal(name) == expected


@given(st.text())
def test_normal_form_is_its_own_normal_form(name):
    assert normal(normal(name)) == normal(name)


@given(st.lists(st.text("abcsxyz", min_size=1, max_size=6), min_size=1, max_size=4), st.sampled_from("_ -,\t"))
def test_normal_form_forgets_case_and_what_stands_between_words(words, mark):
    assert (
        normal(mark.join(words).upper()) == normal(f"{mark} ".join(words)) == " ".join(normal(word) for word in words)
    )


@given(st.text("abcdefghijklmnopqrtuvwxyz", min_size=3, max_size=8))
def test_plural_is_its_singular(word):
    assert normal(word + "s") == normal(word)


NFC, NFD = "Caf\u00e9", "Cafe\u0301"


def test_names_are_compared_however_unicode_writes_their_letters():
    assert composed(NFD) == NFC and same_names([NFC, "bar"], [NFD, "bar"])
    assert not same_names([NFC, "bar"], ["bar", NFD])
    with pytest.raises(ValueError, match=r"photos has two spellings of the class .*Caf\\xe9"):
        check_spellings([NFC, "bar", NFD], "photos")
    check_spellings([NFC, "bar", "Bar"], "photos")


@pytest.mark.parametrize("name", ["a.txt", "a.json"])
@pytest.mark.parametrize(("there", "here"), [(NFC, NFD), (NFD, NFC)])
def test_class_name_files_fit_classes_in_another_normal_form(there, here, name, file):
    content = {here: "coffee house", "bar": "pub"} if name == "a.json" else f"bar: pub\n{here}: coffee house\n"
    assert names_of_classes([there, "bar"], file(content, name)) == {there: ("coffee house",), "bar": ("pub",)}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_class_name_files_with_a_mark(encoding, tmp_path):
    (tmp_path / "a.txt").write_bytes(f"{NFC}: coffee house\n".encode(encoding))
    assert names_of_classes([NFC], tmp_path / "a.txt") == {NFC: ("coffee house",)}
    (tmp_path / "a.txt").write_bytes(f"{NFC}: coffee house\n".encode("cp1252"))
    with pytest.raises(ValueError, match=r"a\.txt is no text in UTF-8: save it as UTF-8"):
        names_of_classes([NFC], tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("names", "known", "expected"),
    [
        (["a", "b"], ["b", "a"], ["b", "a"]),
        (["ice_creams", "Dog"], ["dog", "ice-cream"], ["Dog", "ice_creams"]),
        (["n01440764", "n01443537"], ["goldfish, Carassius auratus", "tench, Tinca tinca"], ["n01443537", "n01440764"]),
        (
            ["Tinca tinca", "goldfish"],
            ["tench, Tinca tinca", "goldfish, Carassius auratus"],
            ["Tinca tinca", "goldfish"],
        ),
        (["e\u0301t\u00e9"], ["\u00e9te\u0301"], ["e\u0301t\u00e9"]),
        (["a", "b"], ["a", "c"], None),
        (["a", "b", "c"], ["a", "b"], None),
        (["a"], ["a", "b"], None),
        (["cats", "cat"], ["Cat", "CATS"], None),  # either could be either
        (["x"], ["y, z"], None),
        ([], [], []),
    ],
)
def test_names_are_matched_one_to_one(names, known, expected):
    assert matched(names, known) == expected
