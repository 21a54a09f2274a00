import json
import os
import signal
import subprocess
import sys

import pytest
from hypothesis import given, strategies as st
from PIL import Image

from sona_pipeline.common.files import (
    digest,
    json_lines,
    only_run,
    png,
    read_json,
    read_json_lines,
    read_text,
    settle_settings,
    write_bytes,
    write_text,
    write_with,
)

HOLDER = """
import pathlib, sys, time
from sona_pipeline.common.files import only_run
with only_run(pathlib.Path(sys.argv[1])):
    print("in", flush=True)
    time.sleep(60)
"""


def test_written_files_have_their_content_and_leave_nothing_beside_them(tmp_path):
    write_text(tmp_path / "new" / "a.txt", "ü\n")
    write_bytes(tmp_path / "new" / "b.bin", b"\0\xff")
    assert (tmp_path / "new" / "a.txt").read_bytes() == b"\xc3\xbc\n"
    assert (tmp_path / "new" / "b.bin").read_bytes() == b"\0\xff"
    assert sorted(os.listdir(tmp_path / "new")) == ["a.txt", "b.bin"]


@pytest.mark.parametrize("error", [OSError("the disk is full"), KeyboardInterrupt()])
@pytest.mark.parametrize("before", [None, b"old"])
def test_a_write_that_fails_half_way_leaves_the_old_file_and_no_part_of_the_new(tmp_path, error, before):
    path = tmp_path / "file.bin"
    if before:
        path.write_bytes(before)

    def write(partial):
        partial.write_bytes(b"half of the n")
        raise error

    with pytest.raises(type(error)):
        write_with(path, write)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == ({"file.bin": before} if before else {})


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path):
    path, seen = tmp_path / "file.txt", []
    write_text(path, "old")

    def write(partial):
        partial.write_text("new")
        seen.append(path.read_text())

    write_with(path, write)
    assert (seen, path.read_text()) == (["old"], "new")


def test_settings_are_written_once_and_equal_ones_are_accepted(tmp_path):
    path = tmp_path / "settings.json"
    settle_settings(path, {"labels": ("ä", "b"), "seed": 0}, {"batch_size": 4})
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "labels": ["ä", "b"],
        "seed": 0,
        "notes": {"batch_size": 4},
    }
    written = path.read_bytes()
    settle_settings(path, {"seed": 0, "labels": ["ä", "b"]}, {"batch_size": 8})
    settle_settings(path, {"seed": 0, "labels": ["ä", "b"]})
    assert path.read_bytes() == written


@pytest.mark.parametrize(
    ("now", "message"),
    [
        ({"seed": 1, "size": 32}, r"seed \(0 then, 1 now\); choose"),
        ({"seed": 0, "size": None}, r"size \(32 then, None now\); choose"),
        ({"seed": 0, "size": 32, "more": "x"}, r"more \(None then, 'x' now\); choose"),
        ({"seed": "0"}, r"seed \(0 then, '0' now\), size \(32 then, None now\); choose"),
    ],
)
def test_other_settings_are_refused_with_key_and_both_values(tmp_path, now, message):
    path = tmp_path / "settings.json"
    settle_settings(path, {"seed": 0, "size": 32}, {"device": "cpu"})
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        settle_settings(path, now, {"device": "cuda"})
    assert path.read_bytes() == before


def test_long_values_are_shortened_in_the_message(tmp_path):
    path = tmp_path / "settings.json"
    settle_settings(path, {"labels": [f"label {k}" for k in range(1000)], "prompt": "x" * 1000})
    with pytest.raises(ValueError) as refusal:
        settle_settings(path, {"labels": [], "prompt": "y" * 1000})
    message = str(refusal.value).replace(str(tmp_path), "")
    assert "label 0" in message
    assert len(message) < 400


def test_a_folder_takes_one_run_at_a_time(tmp_path):
    folder = tmp_path / "new" / "set"
    with only_run(folder):
        with pytest.raises(BlockingIOError, match="another run is writing to"), only_run(folder):
            pytest.fail("two runs are in the folder")
        with only_run(tmp_path / "other"):
            pass
    with only_run(folder):
        pass


def test_a_run_that_fails_frees_its_folder(tmp_path):
    with pytest.raises(KeyError), only_run(tmp_path):
        raise KeyError
    with only_run(tmp_path):
        pass


def test_another_process_is_kept_out_until_it_is_killed(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "in\n"
            with pytest.raises(BlockingIOError), only_run(tmp_path):
                pytest.fail("two processes are in the folder")
        finally:
            holder.kill()
        assert holder.wait(10) == -signal.SIGKILL
    with only_run(tmp_path):
        pass


cells = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()


@given(rows=st.lists(st.dictionaries(st.text(), cells | st.lists(cells, max_size=3), max_size=3), max_size=4))
def test_json_lines_come_back_as_they_were(rows, tmp_path_factory):
    path = tmp_path_factory.mktemp("lines") / "rows.jsonl"
    write_text(path, json_lines(rows))
    assert list(read_json_lines(path)) == rows
    assert path.read_bytes().count(b"\n") == len(rows)


def test_json_lines_keep_letters_readable_and_a_missing_file_has_no_rows(tmp_path):
    assert json_lines([{"a": "ünï \u2028 \n"}]) == '{"a": "ünï \u2028 \\n"}\n'
    assert list(read_json_lines(tmp_path / "nowhere.jsonl")) == []


def test_digest_and_png_are_what_others_make_of_them():
    assert digest(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    content = png(Image.new("L", (3, 2), 7))
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert content == png(Image.new("L", (3, 2), 7))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_is_read_in_utf_8_and_in_utf_16_with_a_mark(encoding, tmp_path):
    (tmp_path / "a.txt").write_bytes("Café 猫\r\nöl\rz\n".encode(encoding))
    assert read_text(tmp_path / "a.txt") == "Café 猫\nöl\nz\n"
    (tmp_path / "empty.txt").write_bytes("".encode(encoding))
    assert read_text(tmp_path / "empty.txt") == ""


@pytest.mark.parametrize("encoding", ["utf-16-be", "utf-16-le", "utf-32", "cp1252", "shift_jis", "mac_roman"])
def test_text_in_another_encoding_is_refused_by_name(encoding, tmp_path):
    (tmp_path / "a.txt").write_bytes(("ash\n" * 2000 + ("猫" if encoding == "shift_jis" else "Café")).encode(encoding))
    with pytest.raises(ValueError, match=r"a\.txt is no text in UTF-8: save it as UTF-8"):
        read_text(tmp_path / "a.txt")


def test_json_that_is_damaged_is_refused_by_name(tmp_path):
    (tmp_path / "a.json").write_bytes('{"ü": [1]}'.encode("utf-16"))
    assert read_json(tmp_path / "a.json") == {"ü": [1]}
    (tmp_path / "a.json").write_text('{"a": ')
    with pytest.raises(ValueError, match=r"a\.json is no JSON: Expecting value"):
        read_json(tmp_path / "a.json")


def test_lines_that_are_no_json_are_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"a":\n')
    with pytest.raises(ValueError, match=r"line 2 of .*a\.jsonl is no JSON: Expecting value"):
        list(read_json_lines(tmp_path / "a.jsonl"))
