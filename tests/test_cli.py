"""The command line as a user calls it: separate processes, on folders of images."""

import json
import subprocess
import sys

import pytest

from sona_pipeline import __version__, sample


def sona(*arguments, code: int = 0) -> subprocess.CompletedProcess:
    run = subprocess.run([sys.executable, "-m", "sona_pipeline", *map(str, arguments)], capture_output=True, text=True)
    assert run.returncode == code, run.stdout + run.stderr
    return run


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Image folders `id`, `test` and `near`, and a label file, of the sample's images."""
    root = tmp_path_factory.mktemp("a folder")
    sets = {"id": sample.id_images("train"), "test": sample.id_images("test")}
    for name, images in sets.items():
        for i in range(60):
            (root / name / images.label_name(i)).mkdir(parents=True, exist_ok=True)
            images.image(i).save(root / name / images.label_name(i) / f"{i}.png")
    (root / "near").mkdir()
    near = sample.near_ood()["coat"]
    for i in range(20):
        near.image(i).save(root / "near" / f"{i}.png")
    (root / "labels.txt").write_text("bag\n\nsandal\n")
    return root


def test_generate_train_evaluate(folders, tmp_path):
    labels = ("--ood-labels", folders / "labels.txt")
    sona("generate", "--data", folders / "id", "--model", "tiny", *labels, "--steps", 4, "--output", tmp_path / "set")
    training = ("--data", folders / "id", "--outliers", tmp_path / "set", "--epochs", 1, "--batch-size", 16)
    sona("train", *training, "--output", tmp_path / "detector")
    sets = ("--id", folders / "test", "--near", f"coat={folders / 'near'}", "--far", f"same={folders / 'test'}")
    run = sona("evaluate", "--detector", tmp_path / "detector", *sets, "--output", tmp_path / "results.json")
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["near_ood"]) == {"coat", "mean"}
    assert results["far_ood"]["same"]["auroc"] == pytest.approx(50)
    assert f"{results['near_ood']['coat']['auroc']:.1f}" in run.stdout


def test_bad_input_is_one_message_and_exit_code_2(folders, tmp_path):
    (tmp_path / "clash.txt").write_text("shirt\n")
    (tmp_path / "none.txt").write_text("\n")
    cases = [
        (
            ["generate", "--data", tmp_path / "[/red] no", "--ood-labels", folders / "labels.txt"],
            "[/red] no does not exist",
        ),
        (["generate", "--data", folders / "id", "--ood-labels", tmp_path / "none.txt"], "no OOD labels"),
        (["generate", "--data", folders / "id", "--ood-labels", tmp_path / "clash.txt"], "are ID classes as well"),
        (["train", "--data", folders / "near"], "a detector needs images of two classes"),
        (["train", "--data", folders / "id", "--outliers", tmp_path], "is not a set made by"),
        (["evaluate", "--detector", tmp_path / "no", "--id", folders / "test"], "holds no detector"),
        (["evaluate", "--detector", tmp_path, "--id", folders / "test"], "holds no detector"),
        (["evaluate", "--detector", tmp_path, "--id", folders / "test", "--near", "coat"], "NAME=DIR"),
    ]
    for arguments, message in cases:
        run = sona(*arguments, *([] if arguments[0] == "evaluate" else ["--output", tmp_path / "out"]), code=2)
        assert message in run.stderr.replace("\n", " ")
        assert "Traceback" not in run.stderr
        assert not (tmp_path / "out").exists()


def test_help_names_the_commands_and_the_version_is_told():
    run = sona("--help")
    assert all(command in run.stdout for command in ("quickstart", "generate", "train", "evaluate"))
    assert sona("--version").stdout.strip() == f"sona {__version__}"
