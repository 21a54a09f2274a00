"""What the commands print, in pipes and on terminals of few letters, and how they end when nothing can be done."""

import io
import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Column, Table
from warm_python import package_python

from sona_pipeline.cli import app as command_line
from sona_pipeline.common import messages
from sona_pipeline.common.assets import TINY_DETECTOR
from sona_pipeline.common.progress import Track
from sona_pipeline.data import sample


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Four images in a folder of a long name with letters that ASCII lacks."""
    folder = tmp_path_factory.mktemp("images") / ("ö" + "long" * 30)
    folder.mkdir()
    for i in range(4):
        sample.id_images("train").image(i).save(folder / f"pïcture {i}.png")
    return folder


def start(*arguments: object, **environment: str) -> subprocess.Popen:
    command = [package_python(), "-m", "sona_pipeline", *map(str, arguments)]
    known = os.environ | {"HF_HUB_OFFLINE": "1"} | environment
    return subprocess.Popen(command, env=known, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def sona(*arguments: object, code: int = 0, **environment: str) -> tuple[str, str]:
    with start(*arguments, **environment) as run:
        out, error = run.communicate()
    assert run.returncode == code, (out, error)
    encoding = environment.get("PYTHONIOENCODING", "utf-8")
    return out.decode(encoding), error.decode(encoding)


@pytest.mark.parametrize("columns", ["20", "80"])
def test_tables_in_pipes_have_whole_paths_on_one_line(images, columns):
    out, _ = sona("score", "--detector", TINY_DETECTOR, images, COLUMNS=columns)
    lines = out.splitlines()
    for i in range(4):
        assert sum(str(images / f"pïcture {i}.png") in line for line in lines) == 1
    assert len(lines) == 4 + 4


def test_a_narrow_screen_folds_a_table_and_cuts_nothing(monkeypatch):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(messages, "console", Console(file=screen, width=24, color_system=None))
    table = Table(Column("image", overflow="fold"), Column("verdict", overflow="fold"))
    table.add_row("abcdefghijklmnopqrstuvwxyz", "OOD")
    messages.say(table)
    found = "".join(line.split("│")[1].strip() for line in screen.getvalue().splitlines() if line.startswith("│"))
    assert found == "abcdefghijklmnopqrstuvwxyz"
    assert max(map(len, screen.getvalue().splitlines())) <= 24


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_letters_that_a_terminal_lacks_are_escaped(images, encoding):
    with start("score", "--detector", TINY_DETECTOR, images, PYTHONIOENCODING=encoding) as run:
        out, error = run.communicate()
    assert run.returncode == 0, error
    assert "picture" not in out.decode(encoding) and "cture 3.png" in out.decode(encoding)
    out, _ = sona("score", "--detector", TINY_DETECTOR, images, "--json", PYTHONIOENCODING=encoding)
    assert [Path(json.loads(line)["image"]).name for line in out.splitlines()] == [f"pïcture {i}.png" for i in range(4)]
    _, error = sona("score", "--detector", TINY_DETECTOR, images / "nöthing", code=2, PYTHONIOENCODING=encoding)
    assert "does not exist" in error


def test_help_and_progress_survive_a_terminal_of_few_letters():
    code = "from sona_pipeline.common.progress import Track\nwith Track('scöres → x', 2) as track: track.advance()"
    for command in (["-m", "sona_pipeline", "generate", "--help"], ["-c", code]):
        known = os.environ | {"PYTHONIOENCODING": "ascii"}
        done = subprocess.run([sys.executable, *command], env=known, capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout, done.stderr


def test_a_title_of_a_bar_keeps_its_letters_where_they_can_be_shown(capsys):
    with Track("scöres", 2) as track:
        track.say("größer")
    assert "größer" in capsys.readouterr().out


@pytest.mark.parametrize("options", [["--json"], []])
def test_a_reader_that_goes_away_ends_a_command_quietly(images, options):
    with start("score", "--detector", TINY_DETECTOR, images, *options) as run:
        run.stdout.close()
        assert run.stderr.read() == b""
        assert run.wait() != 0


@pytest.mark.parametrize("options", [["--json"], []])
def test_images_of_which_none_can_be_read_are_an_error(tmp_path, options):
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(b"no image")
    out, error = sona("score", "--detector", TINY_DETECTOR, tmp_path, *options, code=2)
    assert out.count("cannot identify") == 2
    assert f"sona: none of the 2 images can be read; the first: {tmp_path}/a.png" in error


def test_cam_pictures_of_places_that_look_alike_have_names_of_their_own(tmp_path):
    pytest.importorskip("captum")
    for name in ("a/b.png", "a-b.png", "A-B.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        sample.id_images("train").image(0).save(tmp_path / name)
    sona("score", "--detector", TINY_DETECTOR, tmp_path, "--cam", tmp_path / "cams")
    names = [path.name for path in (tmp_path / "cams").iterdir()]
    assert len({name.casefold() for name in names}) == len(names) == 3


def test_options_take_places_at_home(images, tmp_path, monkeypatch, capsys):
    def run(*words):
        command_line.main(list(map(str, words)))
        return capsys.readouterr().out

    (tmp_path / "sorted" / "shirt").mkdir(parents=True)
    (tmp_path / "sorted" / "dress").mkdir()
    for path, name in zip(sorted(images.iterdir()), ("shirt", "shirt", "dress", "dress")):
        (tmp_path / "sorted" / name / path.name).write_bytes(path.read_bytes())
    (tmp_path / "labels.txt").write_text("bag\nsandal\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    how = ("--data=~/sorted", "--model", "tiny", "--ood-labels=~/labels.txt", "--steps", 2, "--output=~/set")
    assert f"Outliers of 4 images: {tmp_path}/set/outliers" in run("generate", *how)
    run("inspect", "~/set", "--data=~/sorted", "--output=~/sheet.png")
    assert (tmp_path / "sheet.png").exists()
    (tmp_path / "detector").symlink_to(TINY_DETECTOR)
    sets = ("--id=~/sorted", "--near=same=~/sorted")
    run("evaluate", "--detector", "tiny=~/detector", *sets, "--output=~/results")
    assert (tmp_path / "results" / "scores" / "tiny-0.parquet").exists()
    assert f"{tmp_path}/sorted/shirt" in run("score", "--detector=~/detector", "~/sorted")


@pytest.mark.parametrize("error", [RecursionError("deep"), ImportError("half a module")])
def test_ctrl_c_while_a_library_is_imported_is_no_error_of_it(monkeypatch, capsys, request, error):
    def broken_off(*_):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise error from None

    monkeypatch.setattr(command_line, "app", broken_off)
    request.addfinalizer(partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    before = signal.default_int_handler  # which a job in the background does not have
    signal.signal(signal.SIGINT, before)
    with pytest.raises(SystemExit) as ended:
        command_line.main(["score"])
    assert ended.value.code == 130 and not capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.setattr(command_line, "app", lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(type(error)):
        command_line.main(["score"])


def test_ctrl_c_while_the_command_line_is_imported_ends_it_in_silence():
    stopping = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background does not have

class Stopping:
    def find_spec(self, name, *_):
        if name == "cyclopts":
            signal.raise_signal(signal.SIGINT)

from sona_pipeline.__main__ import main
sys.meta_path.insert(0, Stopping())
main()
"""
    ended = subprocess.run([sys.executable, "-c", stopping, "--help"], capture_output=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, b"", b"")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--class-names", "nowhere.txt"), "nowhere.txt does not exist: name another place"),
        (("--class-names", "."), ". is a folder, but a file is needed: name one"),
        (("--output", "sorted/set"), "--output sorted/set is or lies in sorted"),
        (("--output", "file/set"), "file/set cannot be a folder, since a file is there: choose another"),
    ],
)
def test_places_that_cannot_be_used_are_named(images, tmp_path, monkeypatch, capsys, options, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "sorted").symlink_to(images.parent)
    given = ["generate", "--data", "sorted", "--model", "tiny", "--ood-labels", "labels.txt", "--steps", "1"]
    (tmp_path / "labels.txt").write_text("bag\n")
    given += [] if "--output" in options else ["--output", "set"]
    with pytest.raises(SystemExit) as ended:
        command_line.main([*given, *options])
    assert ended.value.code == 2 and sentence in capsys.readouterr().err
