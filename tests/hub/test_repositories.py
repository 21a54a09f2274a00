"""Repositories pushed to a loopback Hub by the command line, and loaded by the ecosystem's own functions."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import datasets
import onnx
import pytest
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import HfApi, ModelCard
from loopback_hub import TOKEN, LoopbackHub, is_lfs, lfs_id
from safetensors.torch import load_file
from warm_python import fresh_python

import sona_pipeline
from sona_pipeline.data.outlier_set import open_outliers, read_rows, read_samples
from sona_pipeline.data.outlier_writer import OutlierWriter
from sona_pipeline.data.sample import OOD_LABELS, id_images
from sona_pipeline.data.settings import FORMATS, PACKINGS
from sona_pipeline.detection.detector import Detector, save_detector
from sona_pipeline.evaluation.evaluate import evaluate_detectors
from sona_pipeline.evaluation.score_table import TestSets
from sona_pipeline.generation.checkpoint import load_pipeline
from sona_pipeline.generation.generate import generate_outliers
from sona_pipeline.generation.settings import GenerationSettings, OutputSettings
from sona_pipeline.hub import repositories as hub

ROOT = Path(sona_pipeline.__file__).parent
# Several command lines in one process, which saves the import of torch for each.
COMMANDS = """
import sys
from sona_pipeline.cli.app import app
for line in sys.argv[1:]:
    app(line.split("|"))
"""
LOADS = """
import json
import sys
import torch
from diffusers import DiffusionPipeline

def latents(pipe):
    pipe.set_progress_bar_config(disable=True)
    pipe.to(dtype=torch.float32)
    images = torch.linspace(0, 1, 32 * 32).view(1, 1, 32, 32)
    options = {"stop_step": 2, "num_inference_steps": 4, "output_type": "latent"}
    return pipe(images, "a photo of a shirt", "a photo of a bag", generator=torch.manual_seed(0), **options).images

own = DiffusionPipeline.from_pretrained("user/sona-tiny", trust_remote_code=True)
other = DiffusionPipeline.from_pretrained("user/base", custom_pipeline="user/sona", trust_remote_code=True)
made = [latents(own), latents(other)]
assert "sona_pipeline" not in sys.modules

import datasets
from PIL import Image
from sona_pipeline import Detector, SONAPipeline, load_pipeline
from sona_pipeline.data.images import open_images

made.append(latents(SONAPipeline.from_pretrained("user/sona-tiny")))
made.append(latents(load_pipeline("tiny", "cpu", dtype="float32")))
detector = Detector.from_pretrained("user/detector").eval()
train, test = (datasets.load_dataset(f"user/{name}") for name in ("outliers", "near"))
report = {
    "modules": [type(pipe).__module__ for pipe in (own, other)],
    "detection": detector("photo.png").energy,
    "splits": {name: len(part) for table in (train, test) for name, part in table.items()},
    "row": {k: v for k, v in train["train"][0].items() if k not in ("image", "reconstruction")},
    "pixels": sum(train["train"][0]["image"].tobytes()),
    "near": len(open_images("user/near", split="test")),
}
torch.save([made, json.dumps(report)], "report.pt")
from sona_pipeline.cli.app import app
app(["score", "--detector", "user/detector", "photo.png", "--json"])
"""


def in_process(code: str, *arguments: str, cwd: Path, environment: dict) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT.parent), **environment}
    command = [fresh_python(), *(("-c", code) if code else ("-m", "sona_pipeline")), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> dict[str, Path]:
    """One outlier set of 12 images in all formats, made in one step, as any other takes longer."""
    folders = {form: tmp_path_factory.mktemp("sets") / form for form in FORMATS}
    settings = GenerationSettings(ood_labels=OOD_LABELS, num_inference_steps=1)
    pipe = sona_pipeline.load_pipeline("tiny", "cpu")
    generate_outliers(id_images("train").drawn(12), pipe, folders["folder"], settings)
    recorded = json.loads((folders["folder"] / "settings.json").read_text())
    for form in PACKINGS:
        folders[form].mkdir()
        (folders[form] / "settings.json").write_text(json.dumps(recorded | {"format": form}))
        writer = OutlierWriter(folders[form], form)
        writer.commit("all", list(read_samples(folders["folder"])), [])
        writer.finish()
    return folders


@pytest.fixture(scope="module")
def detectors(tmp_path_factory) -> Path:
    """Folders `0` and `1` of random detectors, and `results` of an evaluation of both as seeds of one method."""
    root = tmp_path_factory.mktemp("detectors")
    images = id_images("test").drawn(30)
    for number in (0, 1):
        torch.manual_seed(number)
        save_detector(Detector(list(images.classes), image_size=32, threshold=-1.5), root / str(number))
    runs = [("one", str(root / str(number))) for number in (0, 1)]
    evaluate_detectors(runs, TestSets(images, near={"same": images}), root / "results", device="cpu")
    return root


@pytest.fixture(scope="module")
def pushed(sets, detectors, tmp_path_factory):
    """A loopback Hub that the command line has pushed everything to, the folder that it ran in, and its output."""
    work = tmp_path_factory.mktemp("work")
    lines = [
        ["push", "pipeline", "user/sona-tiny", "--model", "tiny"],
        ["push", "pipeline", "user/sona", "--model", "user/base", "--pointer", "--private"],
        ["push", "pipeline", "user/copy", "--model", "user/base"],
        ["push", "pipeline", "user/copy-of-copy", "--model", "user/copy"],
        ["push", "outliers", "user/outliers", sets["folder"], "--output", work / "elsewhere"],
        ["push", "outliers", "user/near", sets["webdataset"], "--near-ood", "--id-set", "clothes"],
        ["push", "detector", "user/detector", detectors / "1", "--results", detectors / "results"],
        ["push", "space", "user/demo"],
    ]
    with LoopbackHub() as server:
        stable = shutil.copytree(sona_pipeline.TINY_MODEL, work.parent / "base")
        server.add("user/base", stable)
        environment = server.environment(work.parent / "home") | {"HF_TOKEN": TOKEN}
        done = in_process(COMMANDS, *("|".join(map(str, line)) for line in lines), cwd=work, environment=environment)
        assert done.returncode == 0, done.stderr[-3000:]
        yield server, work, environment, done.stdout


def repository(pushed, name: str, repo_type: str = "model"):
    return pushed[0].repository(repo_type, f"user/{name}")


def test_everything_is_pushed_and_nothing_left_behind(pushed):
    server, work, _, output = pushed
    assert output.count("Pushed: ") == 8 and f"{server.url}/datasets/user/near" in output
    assert not list(work.iterdir())
    assert [repository(pushed, name).private for name in ("sona-tiny", "sona")] == [False, True]
    assert repository(pushed, "demo", "space").sdk == "gradio"


def test_what_was_pushed_loads_in_a_fresh_process(pushed, sets, detectors, tmp_path):
    _, _, environment, _ = pushed
    photo = id_images("test").image(0)
    photo.save(tmp_path / "photo.png")
    done = in_process(LOADS, cwd=tmp_path, environment=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    made, report = torch.load(tmp_path / "report.pt")
    for latents in made[1:]:
        torch.testing.assert_close(latents, made[0], atol=1e-3, rtol=0)
    report = json.loads(report)
    assert all(name.startswith("diffusers_modules") for name in report["modules"])
    said = Detector.from_pretrained(detectors / "1").eval()(photo)
    assert report["detection"] == pytest.approx(said.energy, rel=1e-5)
    assert json.loads(done.stdout.splitlines()[-1])["energy"] == pytest.approx(said.energy, rel=1e-5)
    rows = list(read_rows(sets["folder"]))
    assert report["splits"] == {"train": 12, "test": 12} and report["near"] == 12
    assert report["row"] == rows[0]
    outliers, _ = open_outliers(sets["folder"], [rows[0]["file_name"]])
    assert report["pixels"] == sum(outliers.image(0).tobytes())


def test_weights_and_tables_are_uploaded_by_git_lfs_and_load_again(pushed, tmp_path):
    server = pushed[0]
    for repo_type, name, number in (("model", "sona-tiny", 3), ("model", "detector", 1), ("dataset", "outliers", 1)):
        files = repository(pushed, name, repo_type).files()
        large = {path: lfs_id(file.read_bytes()) for path, file in files.items() if is_lfs(path)}
        assert len(large) == number
        api = HfApi(endpoint=server.url)
        listed = api.list_repo_tree(f"user/{name}", recursive=True, repo_type=repo_type)
        assert {file.path: file.lfs.sha256 for file in listed if getattr(file, "lfs", None)} == large
        for path, oid in large.items():
            assert f"PUT /storage/{oid}" in server.requests
            got = Path(api.hf_hub_download(f"user/{name}", path, repo_type=repo_type, cache_dir=tmp_path))
            assert got.resolve().name == oid and got.read_bytes() == files[path].read_bytes()


def test_pipeline_repository_keeps_weights_and_names_no_place_of_this_machine(pushed):
    files = repository(pushed, "sona-tiny").files()
    for name in ("unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"):
        tensors = [load_file(folder / name) for folder in (files["README.md"].parent, sona_pipeline.TINY_MODEL)]
        assert tensors[0].keys() == tensors[1].keys()
        assert all(
            torch.equal(value, tensors[1][key]) and value.dtype == torch.float16 for key, value in tensors[0].items()
        )
    index = json.loads(files["model_index.json"].read_text())
    assert index["_class_name"] == ["pipeline", "SONAPipeline"]
    for path in files.values():
        if path.suffix in (".json", ".md"):
            assert str(ROOT.parent) not in path.read_text() and "_name_or_path" not in path.read_text()
    assert sorted(repository(pushed, "sona").files()) == ["README.md", "pipeline.py"]


def test_weights_from_the_hub_are_named_by_their_repository(pushed):
    for name, base in (("copy", "user/base"), ("copy-of-copy", "user/copy")):
        files = repository(pushed, name).files()
        for file in ("model_index.json", "unet/config.json"):
            assert json.loads(files[file].read_text())["_name_or_path"] == base
        assert ModelCard.load(files["README.md"]).data.base_model == base
        weights = "unet/diffusion_pytorch_model.safetensors"
        tensors = [load_file(path) for path in (files[weights], sona_pipeline.TINY_MODEL / weights)]
        assert all(torch.equal(value, tensors[1][key]) for key, value in tensors[0].items())


def test_repository_of_the_model_for_colour_brings_the_code_of_its_autoencoder(tmp_path):
    hub.write_pipeline_repository(tmp_path / "repo", "user/sona-cifar", "cifar")
    own = load_pipeline("cifar", "cpu", dtype="float32")
    loaded = DiffusionPipeline.from_pretrained(tmp_path / "repo", trust_remote_code=True, dtype=torch.float32)
    latents = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(loaded.vae.decode(latents).sample, own.vae.decode(latents).sample)
    card = ModelCard.load(tmp_path / "repo" / "README.md")
    assert card.data.license == "apache-2.0" and "CIFAR" in card.text


def test_a_pointer_of_a_named_family_asks_nobody(tmp_path):
    hub.write_pipeline_repository(
        tmp_path / "repo", "user/sona", "nobody/has-this", pointer=True, family="stable_diffusion_xl"
    )
    made = (tmp_path / "repo" / "pipeline.py").read_bytes()
    assert made == sona_pipeline.SONAXLPipeline.standalone_file().read_bytes()
    with pytest.raises(ValueError, match="pushed with its weights, which say it: leave it out"):
        hub.write_pipeline_repository(tmp_path / "other", "user/sona", "tiny", family="flux")


def test_space_builds_its_page_with_the_package_beside_it(pushed, tmp_path):
    folder = repository(pushed, "demo", "space").folder
    assert not [path for path in folder.rglob("*") if "__pycache__" in path.parts]
    copy = shutil.copytree(folder, tmp_path / "space")
    code = "from sona_pipeline.demo import page, worker\n"
    code += "with worker.Worker() as one: print(len(page.build(one).fns), page.__file__)"
    environment = {"PATH": "", "HOME": str(tmp_path), "GRADIO_TEMP_DIR": str(tmp_path / "gradio")}
    done = subprocess.run([fresh_python(), "-c", code], cwd=copy, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    events, package = done.stdout.split()[-2:]
    assert int(events) > 5 and Path(package).parent == copy / "sona_pipeline" / "demo"


@pytest.mark.parametrize("form", FORMATS)
def test_outliers_of_every_format_are_the_very_files(form, sets, tmp_path):
    hub.write_outlier_repository(tmp_path / "out", "me/out", sets[form])
    table = datasets.Dataset.from_parquet(str(tmp_path / "out" / "data" / "*.parquet"), cache_dir=str(tmp_path / "c"))
    rows = {row["file_name"]: row for row in read_rows(sets["folder"])}
    assert sorted(table["file_name"]) == sorted(rows)
    assert isinstance(table.features["image"], datasets.Image)
    files = table.cast_column("image", datasets.Image(decode=False)).cast_column(
        "reconstruction", datasets.Image(decode=False)
    )
    card = (tmp_path / "out" / "README.md").read_text()
    assert all(re.search(rf"^\| `{column}` \| \w.* \|$", card, re.MULTILINE) for column in table.column_names)
    for row in files:
        for column, kind in (("image", "outliers"), ("reconstruction", "reconstructions")):
            assert row.pop(column)["bytes"] == (sets["folder"] / kind / row["file_name"]).read_bytes()
        assert row == rows[row["file_name"]]
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["ood_labels"] == list(OOD_LABELS)


def test_large_sets_are_shards_without_gaps(sets, tmp_path, monkeypatch):
    monkeypatch.setattr("sona_pipeline.data.shards.ROW_GROUP", 5)
    monkeypatch.setattr("sona_pipeline.data.outlier_writer.SHARD_BYTES", 1)
    hub.write_outlier_repository(tmp_path / "out", "me/out", sets["parquet"], near_ood=True, id_set="clothes")
    names = sorted(path.name for path in (tmp_path / "out" / "data").iterdir())
    assert names == [f"test-{k:05d}-of-00003.parquet" for k in range(3)]
    table = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(part) for name, part in table.items()} == {"test": 12}


def test_settings_name_no_folder_of_this_machine(sets, tmp_path):
    copy = shutil.copytree(sets["folder"], tmp_path / "set")
    settings = json.loads((copy / "settings.json").read_text())
    (copy / "settings.json").write_text(json.dumps(settings | {"classifier": "/home/ada/judge"}))
    hub.write_outlier_repository(tmp_path / "out", "me/out", copy)
    text = (tmp_path / "out" / "settings.json").read_text() + (tmp_path / "out" / "README.md").read_text()
    assert "judge" in text and "/home" not in text


def test_detector_card_has_the_numbers_of_this_very_detector(pushed, detectors):
    card = ModelCard.load(repository(pushed, "detector").files()["README.md"])
    runs = json.loads((detectors / "results" / "results.json").read_text())["runs"]
    mine, other = (run["results"]["energy"]["id_accuracy"] for run in reversed(runs))
    assert mine != other
    assert {result.metric_type: result.metric_value for result in card.data.eval_results} == {
        "accuracy": round(mine, 2),
        "roc_auc": 50.0,
        "fpr95": round(runs[1]["results"]["energy"]["near_ood"]["same"]["fpr95"], 2),
    }
    assert f"{mine:.2f}" in card.text


@pytest.fixture
def hub_of_user(pushed, monkeypatch) -> LoopbackHub:
    """The loopback Hub, which takes what this process pushes."""
    server = pushed[0]
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(hub, "HfApi", lambda: HfApi(endpoint=server.url, token=TOKEN))
    return server


def test_onnx_file_goes_along_on_request_and_does_not_outlive_its_detector(
    hub_of_user, detectors, tmp_path, monkeypatch
):
    hub.write_detector_repository(tmp_path / "with", "user/onnx", detectors / "1", onnx=True)
    hub.write_detector_repository(tmp_path / "without", "user/onnx", detectors / "0")
    hub.push(tmp_path / "with", "user/onnx", "model")
    files = hub_of_user.repository("model", "user/onnx").files()
    use = re.search(r"```python\n(import json\n.*?)```", files["README.md"].read_text(), re.DOTALL)[1]
    photo = id_images("test").image(3)
    photo.save(tmp_path / "photo.jpg", quality=100)
    monkeypatch.chdir(tmp_path)
    said, names = Detector.from_pretrained(detectors / "1").eval()("photo.jpg"), {}
    address = f"{hub_of_user.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    exec(use, names)
    assert names["found"]["score"][0] == pytest.approx(said.score, abs=1e-4)
    assert names["found"]["is_ood"][0] == said.is_ood
    assert "model.onnx" not in (tmp_path / "without" / "README.md").read_text()
    hub.push(tmp_path / "without", "user/onnx", "model")
    assert sorted(hub_of_user.repository("model", "user/onnx").files()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]


def test_detector_pushes_its_onnx_file_on_request(hub_of_user, detectors, tmp_path):
    for threshold, outputs in ((-1.5, 4), (None, 3)):
        detector = Detector.from_pretrained(detectors / "0").with_settings(threshold=threshold)
        detector.push_to_hub("user/own", onnx=True, token=TOKEN)
        model = onnx.load(hub_of_user.repository("model", "user/own").files()["model.onnx"])
        assert len(model.graph.output) == outputs
    detector.save_pretrained(tmp_path / "here")
    assert not (tmp_path / "here" / "model.onnx").exists()
    detector.push_to_hub("user/own", token=TOKEN)
    assert "model.onnx" not in hub_of_user.repository("model", "user/own").files()


def test_results_of_other_detectors_are_refused(detectors, tmp_path):
    torch.manual_seed(5)
    save_detector(Detector(["a", "b"], image_size=32), tmp_path / "new")
    with pytest.raises(ValueError, match="is of this detector"):
        hub.write_detector_repository(tmp_path / "out", "me/d", tmp_path / "new", results=detectors / "results")
    with pytest.raises(ValueError, match="has no runs"):
        hub.read_runs(tmp_path / "new" / "config.json")
    assert not (tmp_path / "out").exists()


def test_a_second_push_takes_old_shards_away_and_leaves_other_files(hub_of_user, sets, tmp_path):
    repo = hub_of_user.add("user/again", tmp_path / "remote", "dataset")
    (repo.folder / "data").mkdir(parents=True)
    for name in ("data/train-00001-of-00002.parquet", "notes.md"):
        (repo.folder / name).write_text("old")
    hub.write_outlier_repository(tmp_path / "out", "user/again", sets["folder"])
    hub.push(tmp_path / "out", "user/again", "dataset")
    assert sorted(repo.files()) == ["README.md", "data/train-00000-of-00001.parquet", "notes.md", "settings.json"]
    with pytest.raises(ValueError, match="exists and is public"):
        hub.push(tmp_path / "out", "user/again", "dataset", private=True)


def test_an_upload_that_breaks_off_is_one_sentence(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("no answer of the storage")

    (tmp_path / "file").write_text("")
    with LoopbackHub() as server:
        monkeypatch.setattr(hub, "HfApi", lambda: HfApi(endpoint=server.url, token=TOKEN))
        monkeypatch.setattr(HfApi, "upload_folder", fail)
        with pytest.raises(OSError, match=r"broke off \(no answer of the storage\): try again"):
            hub.push(tmp_path, "user/x", "model")


@pytest.mark.parametrize(
    "arguments, changes, message",
    [
        (["pipeline", "user/x"], {"HF_TOKEN": ""}, "there is no token of the Hub"),
        (["pipeline", "user/x"], {"HF_TOKEN": "hf_wrong"}, "status 401"),
        (["pipeline", "user/x"], {"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot be reached"),
        (["space", "somebody/x"], {}, "status 403"),
        (["pipeline", "no-owner"], {}, "OWNER/NAME"),
        (["pipeline", "user/x", "--pointer"], {}, "give a Hub id"),
        (["blocks", "user/x", "--model", "tiny"], {}, "give a Hub id"),
        (["blocks", "user/x", "--family", "vae", "--dry-run"], {}, "stable_diffusion"),
        (["blocks", "user/x", "--model", "user/nothing"], {}, "no model on the Hub"),
        (["outliers", "user/x", "NOTHING"], {}, "is not a set made by `sona generate`"),
        (["detector", "user/x", "SET", "--dry-run"], {}, "holds no detector"),
        (["pipeline", "user/x", "--output", "SET"], {}, "holds other things"),
    ],
)
def test_what_cannot_be_ends_with_one_sentence_and_nothing_written(
    arguments, changes, message, pushed, sets, tmp_path, monkeypatch, capsys
):
    server, _, environment, _ = pushed
    before = len(server.requests)
    found = refusal(arguments, environment | changes, sets, tmp_path, monkeypatch, capsys)
    assert message in found and found.startswith("sona: ")
    assert not list(tmp_path.iterdir()) and "Traceback" not in found
    assert not [line for line in server.requests[before:] if "commit" in line]


def refusal(arguments, environment, sets, folder, monkeypatch, capsys) -> str:
    """What the command line says on stderr as it ends with code 2, in this process."""
    places = {"SET": str(sets["folder"]), "NOTHING": str(folder)}
    arguments = [places.get(text, text) for text in arguments]
    assert exit_code(arguments, environment, folder, monkeypatch) == 2
    return capsys.readouterr().err.strip()


def exit_code(arguments, environment, folder, monkeypatch) -> int:
    """How `sona push` ends in this process, run in `folder`."""
    from sona_pipeline.cli.app import main

    monkeypatch.chdir(folder)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", environment["HF_ENDPOINT"])
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(folder / "token"))
    monkeypatch.setattr(hub, "HfApi", lambda: HfApi(endpoint=environment["HF_ENDPOINT"]))
    monkeypatch.setenv("HF_TOKEN", environment["HF_TOKEN"])
    monkeypatch.setattr(sys, "argv", ["sona", "push", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code


def test_a_failure_half_way_leaves_nothing(sets, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise OSError("disk")

    monkeypatch.setattr("sona_pipeline.hub.cards.outlier_card", fail)
    with pytest.raises(OSError, match="disk"):
        hub.write_outlier_repository(tmp_path / "out", "me/out", sets["folder"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("step", ["sona_pipeline.hub.cards.pipeline_card", "huggingface_hub.HfApi.upload_folder"])
def test_a_push_that_is_stopped_leaves_nothing(number, step, pushed, tmp_path, monkeypatch, capsys, request):
    def stop(*arguments, **options):
        assert list(tmp_path.iterdir())
        signal.raise_signal(number)

    request.addfinalizer(partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background does not hear it otherwise
    monkeypatch.setattr(step, stop)
    arguments = ["pipeline", "user/stopped", "--model", "tiny"]
    code = exit_code(arguments, pushed[2], tmp_path, monkeypatch)
    assert code == 130 and "Stopped. Nothing is left" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path):
    limits = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, 10**5))"
    code = f"{limits}; from sona_pipeline.cli.app import main; main()"
    done = in_process(code, "push", "pipeline", "user/x", "--dry-run", cwd=tmp_path, environment={})
    assert done.returncode == 2 and "takes no file of that size" in done.stderr
    assert "Traceback" not in done.stderr and not list(tmp_path.iterdir())


def test_a_push_takes_nothing_away_that_it_did_not_lay_out(sets, pushed, tmp_path, monkeypatch):
    def meanwhile(repo_id):
        (tmp_path / "hub" / "x").mkdir(parents=True)
        (tmp_path / "hub" / "x" / "of another run").touch()

    monkeypatch.setattr(hub, "check_access", meanwhile)
    assert exit_code(["space", "user/x"], pushed[2], tmp_path, monkeypatch) == 2
    assert (tmp_path / "hub" / "x" / "of another run").exists()


def test_unfinished_sets_and_nameless_tests_are_refused(sets, tmp_path):
    copy = shutil.copytree(sets["folder"], tmp_path / "set")
    (copy / ".parts").mkdir()
    with pytest.raises(ValueError, match="is not finished"):
        hub.write_outlier_repository(tmp_path / "out", "me/out", copy)
    with pytest.raises(ValueError, match="belongs to a set of ID images"):
        hub.write_outlier_repository(tmp_path / "out", "me/out", sets["folder"], near_ood=True)
    assert not (tmp_path / "out").exists()


def test_a_set_of_another_codec_is_pushed_as_it_is_and_its_card_says_so(tmp_path):
    images, settings = id_images("train").take(range(3)), GenerationSettings(OOD_LABELS, num_inference_steps=2)
    writing = OutputSettings(codec="webp", save_size=16)
    made = generate_outliers(images, load_pipeline("tiny", "cpu"), tmp_path / "set", settings, writing)
    hub.write_outlier_repository(tmp_path / "out", "me/out", made)
    table = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert {(picture.format, picture.size) for picture in table["image"]} == {("WEBP", (16, 16))}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "16 x 16 pixels, grey |" in card
    assert "WebP without loss, scaled down from 32 pixels" in card
