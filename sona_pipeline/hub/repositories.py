"""Job: repositories for the Hub, laid out as folders and pushed."""

from __future__ import annotations

import importlib.resources
import io
import json
import re
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import huggingface_hub
from huggingface_hub import HfApi, SpaceCard
from huggingface_hub.constants import SAFETENSORS_SINGLE_FILE
from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError
from safetensors import SafetensorError

from sona_pipeline.common.assets import EMBEDDED_MODELS, PACKAGE
from sona_pipeline.common.disk import disk_explained, loosen, make_folder
from sona_pipeline.common.files import read_json, write_text
from sona_pipeline.detection.settings import ONNX_FILE

if TYPE_CHECKING:
    import torch

    from sona_pipeline.detection.detector import Detector
    from sona_pipeline.evaluation.report import Run
    from sona_pipeline.generation.model_files import ModelPlace

# What imports torch is imported where it is needed, so that a wrong name or token is told at once.

SPACE_FILES = ("README.md", "app.py", "requirements.txt")
"""Files of the page that a Space has in its root."""
LOADED_CODE = "diffusers_modules.local."
"""What diffusers puts in front of the names of modules that came with a local model."""


def write_pipeline_repository(
    folder: str | Path,
    repo_id: str,
    model: str,
    *,
    pointer: bool = False,
    family: str | None = None,
    licence: str | None = None,
    results: str | Path | None = None,
) -> None:
    """Lay out a repository that `DiffusionPipeline.from_pretrained` loads, or takes as `custom_pipeline`.

    Args:
        folder: new or empty; it is whole or not there.
        repo_id: `owner/name`, which the card speaks of.
        model: checkpoint of any family, by Hub id or folder; "tiny" and "cifar" are embedded.
        pointer: write the code only, to be used with the weights of `model`, which has to be a Hub id.
        family: name of the family of models of a pointer; by default the Hub is asked about `model`.
        licence: of the weights, by the Hub's name.
        results: folder of `sona evaluate`, or its results.json, with detectors that were trained on such outliers;
            that they were is not checked.

    Raises:
        ValueError: `repo_id` or `model` has not that form, the results have no runs, the model is of no family that is
            known, or has no weights as safetensors, or a family is named for what is no pointer.
        FileExistsError: the folder holds something.
        OSError: there is no such model, or it cannot be reached.
    """
    from sona_pipeline.generation.families import family_of_name
    from sona_pipeline.generation.model_files import ModelPlace, find_model
    from sona_pipeline.hub import cards

    check_repo_id(repo_id)
    check_model(model, pointer)
    if family and not pointer:
        raise ValueError(
            f"the family is {family!r}, but {model} is pushed with its weights, which say it: leave it out"
        )
    runs = read_runs(results) if results else []
    embedded, is_local = EMBEDDED_MODELS.get(model), Path(model).is_dir()
    name = f"sona-{model}" if embedded else Path(model).resolve().name if is_local else model
    notes = (embedded / "README.md").read_text(encoding="utf-8").strip() if embedded else ""
    licence = licence or ("apache-2.0" if embedded else None)
    check_folder(folder)
    found = ModelPlace(str(embedded)) if embedded else None if family else find_model(model)
    kind = found.family if found else family_of_name(str(family))
    with laid_out(folder) as partial:
        if found and not pointer:
            _save_weights(partial, found, None if embedded or is_local else model, bool(embedded))
        else:
            shutil.copyfile(kind.standalone_file(), partial / "pipeline.py")
        card = cards.pipeline_card(repo_id, name, kind, pointer=pointer, licence=licence, notes=notes, runs=runs)
        card.save(partial / "README.md")


def write_blocks_repository(folder: str | Path, repo_id: str, family: str, model: str | None = None) -> None:
    """Lay out a repository that `ModularPipeline.from_pretrained` of diffusers loads.

    Args:
        folder: new or empty; it is whole or not there.
        repo_id: `owner/name`, which the card speaks of.
        family: name of a family of models, for blocks without weights; a model says it by itself.
        model: Hub id of the weights that are to be loaded with the blocks; None for the blocks only.

    Raises:
        ValueError: `repo_id` or `model` has not that form, or the model is of no family that is known.
        FileExistsError: the folder holds something.
        FileNotFoundError: there is no such model, or it cannot be reached.
    """
    from sona_pipeline.generation.families import family_of_name
    from sona_pipeline.generation.model_files import find_model
    from sona_pipeline.hub import cards
    from sona_pipeline.hub.blocks import write_blocks

    check_repo_id(repo_id)
    check_folder(folder)
    if model is not None:
        check_model(model, pointer=True)
    kind = find_model(model).family if model is not None else family_of_name(family)
    with laid_out(folder) as partial:
        write_blocks(partial, kind, model)
        cards.blocks_card(repo_id, kind, model).save(partial / "README.md")


def write_outlier_repository(
    folder: str | Path,
    repo_id: str,
    outliers: str | Path,
    *,
    near_ood: bool = False,
    id_set: str | None = None,
    licence: str | None = None,
) -> None:
    """Lay out a finished outlier set as a data set that `datasets.load_dataset` opens.

    Args:
        folder: new or empty; it is whole or not there.
        repo_id: `owner/name`, which the card speaks of.
        outliers: folder of the set, in any format.
        near_ood: make it a near-OOD test set (split "test" instead of "train").
        id_set: what the ID images are, as a Hub id or in words; a test set has to say it.
        licence: of the images, by the Hub's name.

    Raises:
        ValueError: `repo_id` has not that form, the set is not finished or empty, or a test set has no `id_set`.
        FileExistsError: `folder` holds something.
        FileNotFoundError: `outliers` is not an outlier set.
    """
    from PIL import Image

    from sona_pipeline.data.image_set import ImageSet, is_grey
    from sona_pipeline.data.imaging import decoded
    from sona_pipeline.data.outlier_set import read_samples
    from sona_pipeline.data.outlier_writer import SHARD_BYTES
    from sona_pipeline.data.set_files import SETTINGS
    from sona_pipeline.data.shards import write_table
    from sona_pipeline.generation.inspection import inspect_outliers
    from sona_pipeline.hub import cards

    check_repo_id(repo_id)
    if near_ood and not id_set:
        raise ValueError("a near-OOD test set belongs to a set of ID images: say which, as a Hub id or in words")
    samples, found = read_samples(outliers), inspect_outliers(outliers)
    found.settings.update(_without_places(found.settings))
    few = list(islice(samples, 16))
    with laid_out(folder) as partial:
        write_table(partial / "data", "test" if near_ood else "train", chain(few, samples), SHARD_BYTES)
        write_text(partial / SETTINGS, json.dumps(found.settings, indent=2, ensure_ascii=False) + "\n")
        pictures = ["image", *(["reconstruction"] if few[0].reconstruction else [])]
        names = tuple(sample.row["file_name"] for sample in few)
        images = ImageSet(names, (), (), lambda i: decoded(lambda: Image.open(io.BytesIO(few[i].outlier)), names[i]))
        facts = cards.OutlierFacts([*pictures, *few[0].row], images.image(0).size, is_grey(images))
        card = cards.outlier_card(repo_id, found, facts, id_set=id_set, near_ood=near_ood, licence=licence)
        card.save(partial / "README.md")


def write_detector_repository(
    folder: str | Path,
    repo_id: str,
    detector: str | Path,
    *,
    results: str | Path | None = None,
    licence: str | None = None,
    onnx: bool = False,
) -> None:
    """Lay out a detector that `Detector.from_pretrained` loads.

    Args:
        folder: new or empty; it is whole or not there.
        repo_id: `owner/name`, which the card speaks of.
        detector: folder that `sona train` or `Detector.save_pretrained` wrote.
        results: folder of `sona evaluate` in which this very detector was evaluated, or its results.json.
        licence: of the weights, by the Hub's name.
        onnx: put the detector beside it as an ONNX file, which has `is_ood` if there is a threshold.

    Raises:
        ValueError: `repo_id` has not that form, the results are of other detectors, or there can be no ONNX file.
        FileExistsError: `folder` holds something.
        FileNotFoundError: there is no detector, or no results.
    """
    from sona_pipeline.detection.detector import load_detector
    from sona_pipeline.detection.export import check_onnx_packages, export_detector
    from sona_pipeline.hub import cards

    check_repo_id(repo_id)
    if onnx:
        check_onnx_packages()
    if not Path(detector).is_dir():
        raise FileNotFoundError(f"{detector} does not exist: give a folder that `sona train` wrote")
    model = load_detector(detector, "cpu")
    runs = [_run_of(model, results)] if results else []
    network = model.settings["network"]
    kind, _, place = network.partition(":")
    if place and (Path(place).is_absolute() or Path(place).is_dir()):
        network = f"{kind}:{Path(place).name}"  # its configuration is in the settings
    model._hub_mixin_config["network"] = network
    settings = Path(detector) / "training.json"
    with laid_out(folder) as partial:
        model.save_pretrained(partial)
        if onnx:
            export_detector(model, partial / ONNX_FILE, is_ood=model.threshold is not None)
        training = None
        if settings.exists():
            training = read_json(settings) | {"network": network}
            write_text(partial / settings.name, json.dumps(training, indent=2, ensure_ascii=False) + "\n")
        card = cards.detector_card(repo_id, model, training=training, runs=runs, licence=licence, onnx=onnx)
        card.save(partial / "README.md")


def write_space(folder: str | Path) -> None:
    """Lay out a Space: this package with the page of `sona demo`, and beside it what starts the page.

    Args:
        folder: new or empty; it is whole or not there.

    Raises:
        FileExistsError: `folder` holds something.
    """
    demo, passed_over = _demo_folder(), shutil.ignore_patterns("__pycache__", ".*", "*.pyc")
    with laid_out(folder) as partial:
        package = partial / PACKAGE.name
        shutil.copytree(PACKAGE, package, ignore=passed_over)
        shutil.copytree(demo, package / "demo", ignore=passed_over, dirs_exist_ok=True)
        for name in SPACE_FILES:
            shutil.move(package / "demo" / name, partial / name)


def _demo_folder() -> Path:
    """The folder of the page: inside an installed package, beside it in a clone."""
    return Path(str(importlib.resources.files("sona_pipeline.demo")))


def push(folder: str | Path, repo_id: str, repo_type: str, private: bool = False) -> str:
    """Push a folder to the Hub, into a new repository or one that is there.

    Files of an earlier push in the same sub-folders, such as shards, are taken away, and the ONNX file of an earlier
    detector; others stay.

    Args:
        folder: whose files are pushed.
        repo_id: `owner/name`.
        repo_type: "model", "dataset" or "space".
        private: nobody but the owner may see it.

    Returns:
        The address of the repository.

    Raises:
        ValueError: the repository is there and public, but is to be private; or the Hub refuses the card.
        OSError: there is no token, the Hub cannot be reached, or it refuses.
    """
    folder, api = Path(folder), HfApi()
    sdk = SpaceCard.load(folder / "README.md").data.get("sdk") if repo_type == "space" else None
    with _hub_explained(repo_id), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="It seems that you are about to commit a data file")
        address = api.create_repo(repo_id, repo_type=repo_type, private=private or None, exist_ok=True, space_sdk=sdk)
        if private and not api.repo_info(repo_id, repo_type=repo_type).private:
            raise ValueError(
                f"{repo_id} exists and is public: make it private in its settings on the Hub, or push without --private"
            )
        api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            repo_type=repo_type,
            commit_message="Upload by sona push",
            delete_patterns=[
                *(f"{path.name}/*" for path in folder.iterdir() if path.is_dir()),
                *([ONNX_FILE] if (folder / SAFETENSORS_SINGLE_FILE).exists() else []),
            ],
        )
    return str(address)


def check_repo_id(repo_id: str) -> None:
    """Raise ValueError unless `repo_id` is `owner/name`, as the Hub wants it."""
    try:
        huggingface_hub.utils.validate_repo_id(repo_id)
        is_good = repo_id.count("/") == 1
    except huggingface_hub.errors.HFValidationError:
        is_good = False
    if not is_good:
        raise ValueError(
            f"{repo_id!r} is no name of a repository: give OWNER/NAME, of letters, digits, '-', '_' and '.', with at"
            " most 96 of them"
        )


def check_model(model: str, pointer: bool) -> None:
    """Raise ValueError unless `model` is a folder, an embedded one or a Hub id; a pointer needs a Hub id."""
    is_local = model in EMBEDDED_MODELS or Path(model).is_dir()
    if pointer and is_local:
        raise ValueError(f"a pointer leads to weights on the Hub, and {model!r} is not there: give a Hub id")
    if not is_local and not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        raise ValueError(
            f"the model is {model!r}, but has to be one of {sorted(EMBEDDED_MODELS)}, a folder that is there, or a Hub"
            " id"
        )


def check_folder(folder: str | Path) -> None:
    """Raise FileExistsError if there is anything at `folder` but an empty folder."""
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder} holds other things: take it away, or choose another folder")


def check_access(repo_id: str) -> None:
    """Raise OSError unless the Hub is there and takes the token."""
    with _hub_explained(repo_id):
        HfApi().whoami()


def read_runs(results: str | Path) -> list[Run]:
    """The runs that `sona evaluate` wrote to a folder, or its results.json.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not one, or has no runs.
    """
    path = Path(results)
    path = path / "results.json" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give a folder that `sona evaluate` wrote")
    try:
        runs = [(run["method"], run["results"]) for run in read_json(path)["runs"]]
    except (ValueError, KeyError, TypeError):
        runs = []
    if not runs:
        raise ValueError(f"{path} has no runs of `sona evaluate`: give the results.json that it wrote")
    return runs


def _run_of(detector: Detector, results: str | Path) -> Run:
    """The one of the runs that was this detector's, by what `sona evaluate` noted of each beside its scores."""
    from sona_pipeline.evaluation.evaluate import detector_identity
    from sona_pipeline.evaluation.report import stems

    runs, path, mine = read_runs(results), Path(results), detector_identity(detector)
    notes = (path if path.is_dir() else path.parent) / "scores"
    for stem, (method, by_score) in zip(stems([method for method, _ in runs]), runs):
        note = notes / f"{stem}.json"
        if note.exists() and read_json(note)["detector"] == mine:
            return method, by_score
    raise ValueError(f"no run in {results} is of this detector: evaluate it by `sona evaluate`, and give that folder")


@contextmanager
def laid_out(folder: str | Path) -> Iterator[Path]:
    """A folder to write to, which becomes `folder` when everything is done.

    Raises:
        FileExistsError: `folder` holds something.
        OSError: the disk is full, say, or weights that were given are damaged.
    """
    folder = Path(folder).resolve()
    check_folder(folder)
    make_folder(folder.parent)
    with disk_explained(folder.parent):
        temporary = tempfile.TemporaryDirectory(dir=folder.parent, prefix=".partial-")
    with temporary:
        partial = Path(temporary.name) / folder.name
        partial.mkdir()
        try:
            with disk_explained(folder):
                yield partial
        except SafetensorError as error:
            raise OSError(f"weights cannot be read, or cannot be written to {folder} ({error})") from error
        for path in partial.rglob("*"):
            if path.is_file():
                loosen(path)
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)


def _save_weights(folder: Path, found: ModelPlace, hub_id: str | None, is_trusted: bool) -> None:
    """Save a checkpoint with the pipeline's code, each network in the number format that it is stored in."""
    family, options = found.family, {"variant": found.variant, "use_safetensors": True}
    place = Path(found.place) if hub_id is None else Path(family.download(found.place, **options))
    stored = {path.parent.name: path for path in place.glob("*/*.safetensors")}
    dtypes = {name: _stored_dtype(path) for name, path in stored.items()}
    pipe = family.from_pretrained(place, dtype=dtypes, trust_remote_code=is_trusted, **options)
    pipe.save_pretrained(folder)
    _add_code(folder, place)
    for path in folder.rglob("*.json"):
        content = read_json(path)
        if isinstance(content, dict) and content.pop("_name_or_path", None):
            named = {"_name_or_path": hub_id} if hub_id else {}
            write_text(path, json.dumps(content | named, indent=2, sort_keys=True) + "\n")


def _add_code(folder: Path, place: Path) -> None:
    """Put the code of components beside them, as it lies in `place`, and name it in the index by its file."""
    from sona_pipeline.generation.model_files import INDEX

    index = read_json(folder / INDEX)
    for component, entry in index.items():
        if isinstance(entry, list) and str(entry[0]).startswith(LOADED_CODE):
            entry[0] = entry[0].removeprefix(LOADED_CODE)
            shutil.copyfile(place / component / f"{entry[0]}.py", folder / component / f"{entry[0]}.py")
    write_text(folder / INDEX, json.dumps(index, indent=2, sort_keys=True) + "\n")


def _stored_dtype(weights: Path) -> torch.dtype:
    import torch
    from safetensors import safe_open

    names = {"F16": torch.float16, "BF16": torch.bfloat16}
    with safe_open(weights, "pt") as file:
        return names.get(file.get_slice(next(iter(file.keys()))).get_dtype(), torch.float32)


def _without_places(settings: dict) -> dict:
    """Those settings that name folders of this machine, with the last part of the path only."""
    places = {key: settings.get(key) for key in ("model", "label_encoder", "classifier")}
    return {
        key: Path(place).name
        for key, place in places.items()
        if place and (Path(place).is_absolute() or Path(place).exists())
    }


@contextmanager
def _hub_explained(repo_id: str) -> Iterator[None]:
    """Say in one sentence what the Hub or the way to it refused."""
    try:
        yield
    except LocalTokenNotFoundError:
        raise OSError("there is no token of the Hub: log in by `hf auth login`, or set HF_TOKEN") from None
    except HfHubHTTPError as error:
        status = error.response.status_code
        said = (error.server_message or "no reason given").rstrip(".")
        ways = {
            401: "log in by `hf auth login` with a token that is valid",
            403: "take a token with the right to write, and an owner that it may write for",
        }
        way = ways.get(status, "try again, with the same command")
        raise OSError(f"the Hub refuses {repo_id} (status {status}, {said}): {way}") from error
    except RuntimeError as error:  # of the upload of large files
        raise OSError(f"the upload to {repo_id} broke off ({error}): try again, with the same command") from error
    except HTTPError as error:
        where = huggingface_hub.constants.ENDPOINT
        raise OSError(
            f"the Hub at {where} cannot be reached ({error}): see to the connection, or HF_ENDPOINT"
        ) from error
