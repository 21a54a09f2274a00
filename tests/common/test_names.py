import re
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from sona_pipeline.common.names import at_home, expanded, safe_name, unique_names


def test_a_leading_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded("~/photos") == expanded(Path("~/photos")) == tmp_path / "photos"
    assert expanded("~") == tmp_path
    for path in ("photos/~", "./~", "/~x", "~no such account/x", "owner/name"):
        assert expanded(path) == Path(path)


def test_places_in_options_start_at_home_and_other_texts_stay(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert at_home("~/photos") == f"{tmp_path}/photos"
    assert at_home("birds=~/photos") == f"birds={tmp_path}/photos"
    for text in ("a photo of a ~ {}", "~{}", "owner/name", "x/y=~/z", "~no such account/x", "latent_distance<0.3"):
        assert at_home(text) == text


@pytest.mark.parametrize("text", ["cat", "my photo.png", "T-shirt", "ünï", "日本", "a.b", "connect", "com", "x" * 200])
def test_ordinary_names_stay_as_they_are(text):
    assert safe_name(text) == text


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a/b", "a%2fb"),
        ("a\\b", "a%5cb"),
        ("CON", "%43ON"),
        ("nul.png", "%6eul.png"),
        ("com1", "%63om1"),
        ("end.", "end%2e"),
        ("end ", "end%20"),
        (".hidden", "%2ehidden"),
        ("..", "%2e%2e"),
        ("a\u2028b\xa0", "a%e2%80%a8b%c2%a0"),
        ("\x7f", "%7f"),
        ("", "%"),
    ],
)
def test_what_file_systems_trip_over_is_escaped(text, name):
    assert safe_name(text) == name


def test_long_names_are_cut_between_letters_and_stay_apart(tmp_path):
    names = [safe_name("数" * 300), safe_name("数" * 299 + "据")]
    assert len(set(names)) == 2
    for name in names:
        (tmp_path / f".{name}.png.partial").write_bytes(b"")
        assert name.startswith("数" * 60)


@pytest.mark.parametrize(
    "pair", [("Cat", "cat"), ("Caf\u00e9", "Cafe\u0301"), ("stra\u00dfe", "STRASSE"), ("a-b", "A-B")]
)
def test_names_that_some_disks_take_for_one_another_differ_by_more(pair):
    names = unique_names([*pair, "dog"])
    first, second, other = names.values()
    assert unicodedata.normalize("NFC", first).casefold() != unicodedata.normalize("NFC", second).casefold()
    assert other == "dog"
    assert unique_names(pair[::-1]) == {text: names[text] for text in pair}


@given(texts=st.lists(st.text() | st.text("aA/-_. %", max_size=4) | st.text(min_size=150), unique=True))
def test_no_two_texts_have_one_name_and_every_name_is_one_that_disks_take(texts):
    names = list(unique_names(texts, lambda text: safe_name(text.replace("/", "-"))).values())
    assert len({unicodedata.normalize("NFC", name).casefold() for name in names}) == len(texts)
    for name in names:
        assert 0 < len(name.encode()) <= 200 and name == Path(name).name
        assert not re.search(r'[\x00-\x1f/\\:*?"<>|]|^\.|[. ]$', name)
