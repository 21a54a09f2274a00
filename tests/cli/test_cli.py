"""The command line as a user calls it: separate processes, on folders of images."""

import json
import subprocess
import sys

import datasets
import numpy as np
import pytest
import torch
from warm_python import package_python

from sona_pipeline import __version__
from sona_pipeline.cli.app import app, main
from sona_pipeline.data import sample
from sona_pipeline.detection.detector import load_detector


@pytest.fixture(scope="module")
def sona():
    """Runs a command in a process of its own."""

    def run(*arguments, code: int = 0, python: str | None = None) -> subprocess.CompletedProcess:
        command = [python or package_python(), "-m", "sona_pipeline", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == code, done.stdout + done.stderr
        return done

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


def test_generate_train_score_evaluate(sona, folders, tmp_path):
    labels = ("--ood-labels", folders / "labels.txt")
    sona("generate", "--data", folders / "id", "--model", "tiny", *labels, "--steps", 4, "--output", tmp_path / "set")
    training = ("--data", folders / "id", "--outliers", tmp_path / "set", "--recipe", "small", "--batch-size", 16)
    for seed in (0, 1):
        output = ("--output", tmp_path / f"detector {seed}")
        sona("train", *training, "--epochs", 1, "--id-rate", 0.5, "--cpu", "--seed", seed, *output)
    settings = json.loads((tmp_path / "detector 1" / "training.json").read_text())
    assert (settings["epochs"], settings["network"], settings["id_rate"], settings["seed"]) == (1, "resnet8", 0.5, 1)
    keeping = ("--data", folders / "id", "--outliers", tmp_path / "set", "--classifier", tmp_path / "detector 1")
    sona("train", *keeping, "--epochs", 1, "--learning-rate", 1e-9, "--cpu", "--output", tmp_path / "kept")
    assert json.loads((tmp_path / "kept" / "training.json").read_text())["max_accuracy_drop"] == 1.0
    start, kept = (load_detector(tmp_path / name).state_dict() for name in ("detector 1", "kept"))
    assert all(torch.allclose(kept[name], start[name], atol=1e-6) for name in start)

    (tmp_path / "broken.png").write_bytes(b"no image")
    places = (tmp_path / "broken.png", folders / "near")
    cams = ("--cam", tmp_path / "cams")
    found = sona("score", "--detector", tmp_path / "detector 0", *places, "--json", *cams).stdout.splitlines()
    first, *rows = map(json.loads, found)
    assert "cannot be read as an image" in first["error"] and len(rows) == 20
    detector = load_detector(tmp_path / "detector 0")
    for row in rows:
        said = detector(row["image"])
        assert (row["label"], row["is_ood"]) == (said.label, said.is_ood)
        assert row["energy"] == pytest.approx(said.energy, rel=1e-4)
    assert len(list((tmp_path / "cams").glob("*near*.png"))) == 20
    assert "verdict" in sona("score", "--detector", tmp_path / "detector 0", folders / "near").stdout

    sets = ("--id", folders / "test", "--near", f"coat={folders / 'near'}", "--far", f"same={folders / 'test'}")
    seeds = [f"--detector=SONA={tmp_path / f'detector {seed}'}" for seed in (0, 1)]
    scores = ("--score", "energy", "--score", "knn", "--fit", folders / "id")
    run = sona("evaluate", *seeds, *sets, "--output", tmp_path / "results", *scores)
    runs = json.loads((tmp_path / "results" / "results.json").read_text())["runs"]
    aurocs = [run["results"]["energy"]["near_ood"]["coat"]["auroc"] for run in runs]
    assert f"{np.mean(aurocs):.2f} ± {np.std(aurocs, ddof=1):.2f}" in run.stdout
    assert [run["results"]["knn"]["far_ood"]["same"]["auroc"] for run in runs] == pytest.approx([50, 50])
    for name in ("results.csv", "results.md", "results.tex", "scores.png", "roc.png", "scores/SONA-1.parquet"):
        assert (tmp_path / "results" / name).stat().st_size > 100


def test_dry_run_prints_a_plan_and_writes_nothing(sona, folders, tmp_path):
    options = ("--ood-labels", folders / "labels.txt", "--batch-size", "auto", "--dry-run")
    run = sona("generate", "--data", folders / "id", "--model", "tiny", *options, "--output", tmp_path / "set")
    for word in ("Images:     60 of 6 classes", "OOD labels: 2", "Rows:  ", "Time:", "Disk:", "Batch size:"):
        assert word in run.stdout
    assert not list(tmp_path.iterdir())


def test_options_of_images_labels_and_shards_come_together(sona, folders, tmp_path):
    (tmp_path / "names.json").write_text(json.dumps({"shirt": "blouse, chemise", "dress": ["gown", "frock"]}))
    (tmp_path / "captions.txt").write_text("a bag on a table\nan old gown\ntwo sandals\n")
    listing = [f"{path.relative_to(folders / 'id')} {k}" for k, name in enumerate(("shirt", "dress"))
               for path in sorted((folders / "id" / name).iterdir())]  # fmt: skip
    (tmp_path / "list.txt").write_text("\n".join(listing))
    images = ("--data", tmp_path / "list.txt", "--image-root", folders / "id", "--class-names", tmp_path / "names.json")
    which = ("--classes", "dress", "--limit", 3, "--ood-prompts", tmp_path / "captions.txt", "--format", "parquet")
    how = ("--model", "tiny", "--scheduler", "unipc", "--steps", 3, "--no-reconstructions", "--resize-mode", "pad")
    run = sona("generate", *images, *which, *how, "--output", tmp_path / "set")
    left_out = "1 OOD labels are left out: 'an old gown' (ID class 'dress', contains 'gown')"
    assert left_out in run.stdout.replace("\n", " ")
    rows = [json.loads(line) for line in (tmp_path / "set" / "metadata.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    assert {(row["source_class"], row["id_label"]) for row in rows} == {("dress", "gown")}
    assert {row["ood_label"] for row in rows} <= {"a bag on a table", "two sandals"}
    settings = json.loads((tmp_path / "set" / "settings.json").read_text())
    assert (settings["scheduler"], settings["ood_prompt"]) == ("UniPCMultistepScheduler", "{}")

    run = sona("inspect", tmp_path / "set", "--data", tmp_path / "list.txt", "--image-root", folders / "id")
    assert "3 outliers, 1 classes" in run.stdout
    assert (tmp_path / "set" / "inspection.png").read_bytes().startswith(b"\x89PNG")


BAD = {
    "generate --data {root}/nowhere": "nowhere does not exist",
    "generate --data {root}/id --ood-labels {root}/none.txt": "no OOD labels",
    "generate --data {root}/id --ood-labels {root}/clash.txt": "since 'shirt' collides with 'shirt'",
    "generate --data {root}/id --ood-labels {root}/labels.txt --ood-prompts {root}/labels.txt": "exclude each other",
    "generate --data {root}/near --ood-labels {root}/labels.txt": "have no classes",
    "generate --data {root}/id --class-names {root}/labels.txt": "has no name for the classes",
    "generate --data {root}/id --model tiny --batch-size many": 'for --batch-size: unable to convert "many"',
    "generate --data {root}/id --model tiny --classes hat": "no class named ['hat']",
    "generate --data {root}/id --model tiny --scheduler pndm": '"pndm" for --scheduler. Choose from: "ddim"',
    "generate --data {root}/id --model tiny --mask-threshold 0.5": "--mask-threshold is 0.5, but has to be above 0",
    "inspect {root}": "is not a set made by",
    "train --data {root}/near": "training images have no classes",
    "train --data {root}/id --outliers {root}": "is not a set made by",
    "train --data {root}/id --recipe mine": 'Invalid value "mine" for --recipe. Choose from: "imagenet200"',
    "train --data {root}/id --outliers {root} --real-outliers {root}": "exclude each other",
    "train --data {root}/id --network resnet9": "no network named 'resnet9'",
    "train --data {root}/id --classifier {root}": "holds no detector or other classifier",
    "train --data {root}/id --real-outliers {root}/near --mi-weight 1": "between an image and its own outlier",
    "train --data {root}/id --validation-share 0 --id-rate 0.9": "needs validation images",
    "train --data {root}/id --validation {root}/near": "validation images have no classes",
    "train --data {root}/id --validation {root}/test/../id": "are the training images",
    "score --detector {root} {root}/near": "holds no detector",
    "score --detector {root} {root}/nothing": "does not exist",
    "evaluate --detector {root}/no --id {root}/test": "no does not exist",
    "evaluate --detector {root} --id {root}/test": "holds no detector",
    "evaluate --detector {root} --id {root}/test --near coat": "NAME=PLACE",
    "evaluate --detector {root}/a/run --detector {root}/b/run --id {root}/test": "give NAME=DIR for each",
    "evaluate --detector {root}/a/run --detector run={root}/b --id {root}/test": "would be named 'run'",
    "evaluate --detector {root} --id {root}/test --near a={root}/near --near a={root}/id": "'a' is the name of several",
    "evaluate --detector {root}": "there are no test images",
    "evaluate --detector {root} --benchmark cifar10 --root {root}": "cifar10/train_cifar10.txt is missing",
    "evaluate --detector {root} --benchmark cifar10 --id {root}/test": "brings its own test sets",
}


@pytest.mark.parametrize("words", BAD)
def test_bad_input_is_one_message_and_exit_code_2(folders, tmp_path, monkeypatch, capsys, words):
    (folders / "clash.txt").write_text("shirt\n")
    (folders / "none.txt").write_text("\n")
    arguments = [word.format(root=folders) for word in words.split()]
    output = ["--output", str(tmp_path / "out")] if arguments[0] in ("generate", "train", "evaluate") else []
    monkeypatch.setattr(sys, "argv", ["sona", *arguments, *output])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert BAD[words] in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "out").exists()


def test_validation_images_that_are_given_go_before_those_of_a_benchmark(folders, monkeypatch):
    images, given = sample.id_images("test"), {}

    def stop(*arguments, **options):
        given.update(options)
        raise ValueError("that is enough")

    monkeypatch.setattr("sona_pipeline.evaluation.openood.open_part", lambda benchmark, root, part: images.take([0]))
    monkeypatch.setattr("sona_pipeline.evaluation.openood.open_group", lambda benchmark, root, group: {group: images})
    monkeypatch.setattr("sona_pipeline.evaluation.evaluate.evaluate_detectors", stop)
    sets = ["--benchmark", "cifar10", "--root", str(folders), "--validation", str(folders / "test")]
    options = ["--detector", "none", "--score", "knn", "--output", str(folders / "out")]
    monkeypatch.setattr(sys, "argv", ["sona", "evaluate", *sets, *options])
    with pytest.raises(SystemExit):
        main()
    assert (len(given["fit_images"]), len(given["validation_images"])) == (1, 60)


def test_validation_images_come_from_a_split_of_their_own(folders, tmp_path, monkeypatch, capsys):
    whole = datasets.load_dataset("imagefolder", data_dir=folders / "test", split="train")
    datasets.DatasetDict(train=whole.select(range(40)), test=whole.select(range(40, 60))).save_to_disk(tmp_path / "all")
    given = {}

    def stop(images, settings, **options):
        given.update(options, images=images)
        raise ValueError("that is enough")

    monkeypatch.setattr("sona_pipeline.training.train.train_detector", stop)
    place = str(tmp_path / "all")
    arguments = ["sona", "train", "--data", place, "--validation", place, "--output", str(tmp_path / "out")]
    for options, message in (["--validation-split", "test"], "that is enough"), ([], "are the training images"):
        monkeypatch.setattr(sys, "argv", [*arguments, *options])
        with pytest.raises(SystemExit):
            main()
        assert message in capsys.readouterr().err
    assert (len(given["images"]), len(given["validation"])) == (40, 20)


def test_validation_list_has_the_classes_of_the_training_list(folders, tmp_path, monkeypatch, capsys):
    files = sorted(path.relative_to(folders) for path in (folders / "id").rglob("*.png"))
    number = {name: k for k, name in enumerate(sorted({path.parent.name for path in files}))}
    (tmp_path / "train.txt").write_text("\n".join(f"{path} {number[path.parent.name]}" for path in files))
    (tmp_path / "val.txt").write_text("near/0.png 1\nnear/1.png 0\n")
    given = {}

    def stop(images, settings, **options):
        given.update(options, images=images)
        raise ValueError("that is enough")

    monkeypatch.setattr("sona_pipeline.training.train.train_detector", stop)
    lists = ["--data", str(tmp_path / "train.txt"), "--validation", str(tmp_path / "val.txt")]
    options = ["--image-root", str(folders), "--output", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["sona", "train", *lists, *options])
    with pytest.raises(SystemExit):
        main()
    assert "that is enough" in capsys.readouterr().err
    assert given["validation"].classes == given["images"].classes == tuple(number)
    assert given["validation"].labels == (1, 0)


def test_message_of_a_process_has_no_traceback_and_keeps_brackets(sona, folders, tmp_path):
    missing = tmp_path / "[/red] no"
    options = ("--data", missing, "--ood-labels", folders / "labels.txt", "--output", tmp_path)
    run = sona("generate", *options, code=2, python=sys.executable)
    assert f"{missing} does not exist" in run.stderr.replace("\n", " ")
    assert "Traceback" not in run.stderr


def test_help_names_the_commands_and_the_version_is_told(sona):
    run = sona("--help")
    assert all(
        command in run.stdout for command in ("fit", "quickstart", "generate", "inspect", "train", "score", "evaluate")
    )
    assert sona("--version").stdout.strip() == f"sona {__version__}"


def test_a_run_is_repeated_by_its_own_file(sona, folders, tmp_path):
    (tmp_path / "how.yaml").write_text("steps: 3\nscheduler: unipc\nbatch-size: 8\nmodel: tiny\ndtype: bfloat16\n")
    images = ("--data", folders / "id", "--seed", 5, "--limit", 6)
    sona("generate", "--config", tmp_path / "how.yaml", *images, "--steps", 4, "--output", tmp_path / "one")
    recorded = ("--config", tmp_path / "one" / "settings.json", "--limit", 6)
    sona("generate", *recorded, "--data", folders / "id", "--output", tmp_path / "two")
    one, two = (json.loads((tmp_path / name / "settings.json").read_text()) for name in ("one", "two"))
    assert (one["num_inference_steps"], one["seed"], one["notes"]["dtype"]) == (4, 5, "torch.bfloat16")
    assert two | {"notes": 0} == one | {"notes": 0} and two["notes"]["dtype"] == one["notes"]["dtype"]
    tables = [(tmp_path / name / "outliers" / "metadata.jsonl").read_text() for name in ("one", "two")]
    assert tables[0] == tables[1] and len(tables[0].splitlines()) == 6

    training = ("--data", folders / "id", "--cpu", "--validation-share", 0.2)
    sona("train", *training, "--recipe", "small", "--epochs", 1, "--id-rate", 0.9, "--output", tmp_path / "first")
    sona("train", *training, "--config", tmp_path / "first" / "training.json", "--output", tmp_path / "again")
    first, again = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("first", "again"))
    assert first == again


def test_completion_knows_options_and_choices():
    script = app.generate_completion(shell="bash")
    assert all(word in script for word in ("--mask-granularity", "spatial", "dpmsolver++", "quickstart"))
