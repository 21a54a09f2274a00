"""The full-size recipes, run by bash on small images and a small random checkpoint of Stable Diffusion 2's layout."""

import hashlib
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from openood_places import PLACES
from PIL import Image
from tiny_pipelines import SCHEDULE, byte_tokenizer
from transformers import CLIPTextConfig, CLIPTextModel
from warm_python import package_python

from sona_pipeline import Detector
from sona_pipeline.generation.ways import WAYS
from sona_pipeline.training.methods import METHODS

FOLDER = Path(__file__).parents[2] / "examples" / "full_size"
WNIDS = ("n01443537", "n01484850", "n02007558")
"""Three of ImageNet-200's classes: goldfish, great white shark, flamingo."""
SMALL = {
    "SEEDS": "0",
    "SCORES": "msp knn",
    "GENERATE_OPTIONS": "--steps 2 --batch-size 32",
    "TRAIN_OPTIONS": "--network resnet8 --image-size 16 --epochs 1 --batch-size 16 --cpu",
    "EVALUATE_OPTIONS": "--device cpu",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A checkpoint with the layers of Stable Diffusion 2 base, of few channels, for images of 64 pixels."""
    tokenizer = byte_tokenizer(length=77, pad_token="!")
    unet = UNet2DConditionModel(
        sample_size=8,
        down_block_types=[*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
        up_block_types=["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
        block_out_channels=[20, 40, 80, 80],
        layers_per_block=2,
        attention_head_dim=[5, 10, 20, 20],
        cross_attention_dim=32,
        use_linear_projection=True,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        block_out_channels=[4, 8, 16, 16],
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=128,
            num_hidden_layers=23,
            num_attention_heads=16,
            max_position_embeddings=77,
            hidden_act="gelu",
            projection_dim=16,
            pad_token_id=1,
            bos_token_id=0,
            eos_token_id=2,
        )
    )
    scheduler = PNDMScheduler(
        **{name: value for name, value in SCHEDULE.items() if name != "clip_sample"},
        skip_prk_steps=True,
        prediction_type="epsilon",
    )
    parts = {"unet": unet, "vae": vae, "text_encoder": text_encoder, "tokenizer": tokenizer, "scheduler": scheduler}
    folder = tmp_path_factory.mktemp("model") / "stable diffusion 2"
    StableDiffusionPipeline(
        **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    ).save_pretrained(folder)
    return folder


def save(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((32, 32)).save(path)


def openood_data(root: Path, name: str, classes: tuple[str, ...], each: int) -> Path:
    """OpenOOD's `data` folder for a benchmark: `each` training images a class, and some of all other sets."""
    for place, (kind, (list_name, folder)) in enumerate(PLACES[name].items()):
        is_id = kind in ("train", "validation", "test") or kind.startswith("covariate")
        if kind == "train":
            lines = [f"train/{c}/{k}.png {number}" for number, c in enumerate(classes) for k in range(each)]
        else:
            lines = [f"set-{place}/{k}.png {k % len(classes) if is_id else -1}" for k in range(len(classes))]
        path = root / "benchmark_imglist" / f"{list_name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
        for number, line in enumerate(lines):
            save(root / folder / line.split(" ")[0], 1000 * place + number)
    return root


def real_images(root: Path, name: str, count: int) -> None:
    """Images of other things, in OpenOOD's list of that name."""
    lines = [f"others/{k}.png -1" for k in range(count)]
    (root / "benchmark_imglist" / name).write_text("\n".join(lines) + "\n")
    for number, line in enumerate(lines):
        save(root / "images_largescale" / line.split(" ")[0], 30000 + number)


def image_folders(root: Path) -> Path:
    """The layout of the fine-grained recipe."""
    for number, name in enumerate(("001.wren", "002.heron")):
        for k in range(8):
            save(root / ("train" if k < 6 else "test") / name / f"{name} {k}.png", 100 * number + k)
    for place in ("near/other birds", "far/cars"):
        for k in range(3):
            save(root / place / f"{k}.png", 20000 + k)
    (root / "names.txt").write_text("001.wren: winter wren\n002.heron: grey heron\n")
    return root


@pytest.fixture(scope="module")
def run(model):
    """Function that runs a script, with settings as in the environment of a reader, and gives what it prints."""

    def run_script(script: str, output: Path, *arguments: str, tools: Path | None = None, **settings) -> str:
        warm, own = Path(package_python()).parent, Path(sys.executable).parent
        path = os.pathsep.join([*([str(tools)] if tools else []), str(warm), str(own), os.environ["PATH"]])
        environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1", "MODEL": str(model), "OUT": str(output)}
        environment |= {"PYTHON_EXEC": package_python()}  # of what torch launches
        environment |= SMALL | {name: str(value) for name, value in settings.items()}
        done = subprocess.run(
            ["bash", str(FOLDER / script), *arguments], capture_output=True, text=True, env=environment
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run_script


def rows(outliers: Path) -> list[dict]:
    return [json.loads(line) for line in (outliers / "outliers" / "metadata.jsonl").read_text().splitlines()]


def check_outliers(folder: Path, count: int) -> None:
    """One outlier and one round trip of every ID image, of the model's size."""
    made, trips = (sorted((folder / part).rglob("*.png")) for part in ("outliers", "reconstructions"))
    assert len(made) == len(trips) == len(rows(folder)) == len({row["source_key"] for row in rows(folder)}) == count
    assert {Image.open(path).size for path in (*made, *trips)} == {(64, 64)}


def check_results(
    output: Path, near: set[str], far: set[str], covariate: tuple[str, ...] = (), others: tuple[str, ...] = ()
) -> None:
    """Detectors that load, and rows of every test set for all of them."""
    systems = ("SONA", "cross-entropy", *others)
    for name in systems:
        detector = Detector.from_pretrained(output / f"{name.lower()}-0")
        assert 0 < detector(Image.new("RGB", (32, 32))).confidence <= 1
    for folder, scores in (("results", {"energy"}), ("post-hoc", {"msp", "knn"})):
        table = pd.read_csv(output / folder / "results.csv")
        assert set(table.method) == set(systems) and set(table.score) == scores
        sets = {group: set(part.set) - {"mean"} for group, part in table.groupby("group")}
        assert (sets["near_ood"], sets["far_ood"]) == (near, far)
        assert set(table.spectrum) == ({"standard", "full"} if covariate else {"standard"})


def files(folder: Path) -> dict[str, int]:
    found = (path for path in folder.rglob("*") if path.suffix in (".png", ".safetensors"))
    return {str(path): path.stat().st_mtime_ns for path in found if path.name != "inspection.png"}


def test_imagenet200(run, tmp_path):
    data = openood_data(tmp_path / "dâta 数据", "imagenet200", WNIDS, each=4)
    real_images(data, "imagenet200/train_imagenet800.txt", 20)
    printed = run("imagenet200.sh", tmp_path / "runs", DATA=data, SYSTEMS="SONA cross-entropy OE CutPaste")
    check_outliers(tmp_path / "runs" / "outliers-0", 12)
    check_outliers(tmp_path / "runs" / "outliers-cutpaste-0", 12)
    told = [json.loads((tmp_path / "runs" / f"{name}-0" / "training.json").read_text()) for name in ("sona", "oe")]
    assert told[0]["outliers"] != told[1]["outliers"]
    names = {"goldfish", "great white shark", "flamingo"}
    assert {row["id_label"] for row in rows(tmp_path / "runs" / "outliers-0")} == names
    settings = json.loads((tmp_path / "runs" / "outliers-0" / "settings.json").read_text())
    assert settings["scheduler"] == "DDIMScheduler" and not names & set(settings["ood_labels"])
    assert "OOD labels are left out" in printed
    near, far = {"ssb_hard", "ninco"}, {"inaturalist", "textures", "openimage_o"}
    check_results(tmp_path / "runs", near, far, covariate=("v2", "c", "r"), others=("OE", "CutPaste"))
    assert Detector.from_pretrained(tmp_path / "runs" / "sona-0").classes == list(WNIDS)


def listed(folder: Path, script: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """What a script would run: every `python` says its arguments only."""
    (folder / "python").write_text('#!/usr/bin/env bash\necho "$@"\n')
    (folder / "python").chmod(0o755)
    environment = os.environ | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "SEEDS": "0 1"} | settings
    return subprocess.run(["bash", str(FOLDER / script)], capture_output=True, text=True, env=environment)


SYSTEMS = [line.split() for line in (FOLDER / "systems.txt").read_text().splitlines() if line[:1] != "#"]


def test_every_system_is_run_on_the_same_terms(tmp_path):
    done = listed(tmp_path, "imagenet200.sh", SYSTEMS=" ".join(name for name, *_ in SYSTEMS), OUT="runs")
    assert done.returncode == 0, done.stderr
    lines = [line.removeprefix("-m sona_pipeline ") for line in done.stdout.splitlines()]
    made, trained = ([line for line in lines if line.startswith(f"{word} ")] for word in ("generate", "train"))
    ways = [kind for _, kind, *_ in SYSTEMS if kind not in ("real", "none")]
    assert {line.split("--way ")[1].split()[0] for line in made} == set(ways) <= set(WAYS)
    assert len(made) == 2 * len(ways) and len(trained) == 2 * len(SYSTEMS)
    for command in (made, trained):  # what is left without the names of systems and seeds is the same
        own = r" --(way|outliers|real-outliers|method|feature-scale|seed|output) \S+"
        assert len({re.sub(own, "", line) for line in command}) == 1
    assert {m for line in trained for m in re.findall(r"--method (\S+)", line)} <= set(METHODS)
    for name, kind, _, *options in SYSTEMS:
        command = next(line for line in trained if line.endswith(f"--output runs/{name.lower()}-1 --workers 8"))
        given = {"none": "", "real": "--real-outliers data/benchmark_imglist/imagenet200/train_imagenet800.txt "}
        set_of = f"--outliers runs/outliers{'' if kind == 'sona' else f'-{kind}'}-1 "
        assert f"val_imagenet200.txt {given.get(kind, set_of)}{' '.join([*options, ''])}--seed 1" in command
    assert lines[-1].count("--detector") == 2 * len(SYSTEMS) and "global guidance=runs/global_guidance-0" in lines[-1]


def test_readme_says_what_the_ways_cost():
    text = " ".join((FOLDER / "README.md").read_text(encoding="utf-8").split())
    for name, kind, *_ in SYSTEMS:
        if found := re.search(rf" {re.escape(name)} (?:takes )?(\d[\d.]*)(?:,| an image)", text):
            rows = sum(WAYS[kind].rows(step, 50) for step in range(1, 51)) / 50
            assert float(found[1]) == rows
    assert " OIR 682," in text


@pytest.mark.parametrize(("name", "reason"), [("OEE", "no system OEE"), ("OE", "OE needs real outliers: set REAL")])
def test_a_system_that_cannot_be_run_is_said_at_once(tmp_path, name, reason):
    done = listed(tmp_path, "fine_grained.sh", SYSTEMS=f"SONA {name}")
    assert done.returncode == 2 and reason in done.stderr and not done.stdout


def test_estimate_counts_the_work_and_divides_it(tmp_path, capsys):
    """Rows by the formula of the plan, written out; bytes of files of known sizes; seconds that come out even."""
    (tmp_path / "list.txt").write_text("a/1.png 0\na/2.png 0\nb/1.png 1\n")
    for part, size, suffix in (("outliers", 700, "png"), ("outliers", 900, "webp"), ("reconstructions", 500, "jpg")):
        (tmp_path / part / "a").mkdir(parents=True, exist_ok=True)
        (tmp_path / part / "a" / f"{size}.{suffix}").write_bytes(bytes(size))
    (tmp_path / "outliers" / "metadata.jsonl").write_text("{}\n")
    digests = [
        hashlib.sha256(f"{s}/{key}".encode()).digest()[:8] for s in (0, 1) for key in ("a/1.png", "a/2.png", "b/1.png")
    ]
    stops = [1 + int(int.from_bytes(digest, "big") / 2**64 * 50) for digest in digests]
    rates = {"rows_per_second": 3 * sum(stops) / 7200, "training_rate": 0.1, "baseline_rate": 0.2}
    spec = importlib.util.spec_from_file_location("full_size_estimate", FOLDER / "estimate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(data=str(tmp_path / "list.txt"), **rates, sample=tmp_path, seeds=2, epochs=10, nodes=(3,))
    printed = capsys.readouterr().out
    assert f"3 images; {3 * sum(stops[:3])} UNet rows with seed 0" in printed
    assert "1300 bytes an image, with its round trip: 7.8 kB in all" in printed
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines() if line[:1] == "|"]
    assert table[0] == ["", "1 GPU", "8 GPUs", "3 x 8 GPUs"]
    assert table[2:] == [
        [f"2 outlier sets, {3 * sum(stops)} UNet rows", "2:00:00", "0:15:00", "0:05:00"],
        ["2 SONA detectors, 60 images", "0:10:00", "0:01:15", "0:00:25"],
        ["2 baselines, 60 images", "0:05:00", "0:00:38", "0:00:12"],
        ["together", "2:15:00", "0:16:52", "0:05:38"],
    ]


SRUN = """\
[[ $1 == --kill-on-bad-exit=1 ]] && shift
SLURM_NODEID=1 "$@" & other=$!
SLURM_NODEID=0 "$@"
wait $other"""


ACCELERATE = 'exec python -m accelerate.commands.accelerate_cli "$@"'


def slurm(folder: Path) -> dict[str, str]:
    """Settings of a job on two nodes of one device each; `srun` starts both on this machine."""
    tools = {"srun": SRUN, "scontrol": "echo 127.0.0.1; echo other-node", "accelerate": ACCELERATE}
    for name, text in tools.items():
        (folder / name).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (folder / name).chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    job = {"SLURM_SUBMIT_DIR": str(FOLDER.parent.parent), "SLURM_JOB_NODELIST": "node[0-1]", "SLURM_NNODES": "2"}
    return job | {"GPUS": "1", "PORT": port}


def test_cifar100_on_two_nodes_of_slurm(run, tmp_path):
    classes = tuple((FOLDER / "cifar100_classes.txt").read_text().split())
    data = openood_data(tmp_path / "data", "cifar100", classes, each=1)
    run("slurm.sbatch", tmp_path / "runs", "cifar100.sh", tools=tmp_path, DATA=data, **slurm(tmp_path))
    check_outliers(tmp_path / "runs" / "outliers-0", 100)
    labels = {row["id_label"] for row in rows(tmp_path / "runs" / "outliers-0")}
    assert labels == {name.replace("_", " ") for name in classes}
    training = json.loads((tmp_path / "runs" / "sona-0" / "training.json").read_text())
    assert (training["processes"], training["min_strength"], training["schedule"]) == (2, 0, "cosine")
    check_results(tmp_path / "runs", {"cifar10", "tin"}, {"mnist", "svhn", "texture", "places365"})


def test_fine_grained_set_and_a_second_run_that_adds_nothing(run, tmp_path):
    data, output = image_folders(tmp_path / "birds"), tmp_path / "runs"
    settings = {"DATA": data, "CLASS_NAMES": data / "names.txt"}
    run("fine_grained.sh", output, **settings)
    check_outliers(output / "outliers-0", 12)
    assert {row["id_label"] for row in rows(output / "outliers-0")} == {"winter wren", "grey heron"}
    check_results(output, {"other birds"}, {"cars"})
    made = files(output / "outliers-0") | files(output / "sona-0")
    run("fine_grained.sh", output, **settings)
    assert files(output / "outliers-0") | files(output / "sona-0") == made
