"""What lies at the place of a model, seen before anything of it is loaded."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError, safe_open

from sona_pipeline.common.files import read_json
from sona_pipeline.common.names import expanded
from sona_pipeline.generation.families import family_of_index, family_of_keys
from sona_pipeline.pipelines.core import SONAMixin
from sona_pipeline.pipelines.families.stable_diffusion import SONAPipeline

INDEX = "model_index.json"
_PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
_WHAT = "a folder or Hub id of diffusers' form, with model_index.json, or one .safetensors file"
DENOISERS = {"unet": "UNet", "transformer": "transformer"}
"""Folders that the weights of the denoiser may lie in, and what it is called then."""
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|model)(?:-\d+-of-\d+)?(?:\.(?P<variant>[\w-]+?))?(?:-\d+-of-\d+)?\.\w+"
)


@dataclass(frozen=True)
class ModelPlace:
    """Where a model is loaded from.

    Attributes:
        place: folder, file or Hub id.
        is_file: whether it is one file.
        variant: of the weights; None if they have none.
        is_cached: whether a copy of the Hub's is taken, since the Hub cannot be reached.
        family: that takes it.
    """

    place: str
    is_file: bool = False
    variant: str | None = None
    is_cached: bool = False
    family: type[SONAMixin] = SONAPipeline


def find_model(
    model: str, revision: str | None = None, variant: str | None = None, config: str | None = None
) -> ModelPlace:
    """The place of a model that can be loaded, as far as names and headers of its files tell.

    Args:
        model: folder, .safetensors file or Hub id.
        revision: of the Hub's.
        variant: of the weights, such as "fp16"; by default those without one, or the one that is there.
        config: folder or Hub id with the configuration of a file; by default the weights in it tell its family.

    Raises:
        FileNotFoundError: there is none, or it cannot be reached.
        ValueError: it is something else, or pickled.
    """
    path = expanded(model)
    if path.is_file():
        keys = _keys_of(path)
        family = family_of_index(config, _opened(config)[1]) if config else family_of_keys(path, keys)
        if not hasattr(family, "from_single_file"):
            raise ValueError(f"{path} is one file, and {family.title} comes in diffusers' form only: name its folder")
        return ModelPlace(str(path), is_file=True, family=family)
    files, index, is_cached = _opened(model, revision)
    family = family_of_index(model, index)
    place = str(path) if path.is_dir() else model
    return ModelPlace(place, False, _settled_variant(model, files, index, variant), is_cached, family)


def _opened(model: str, revision: str | None = None) -> tuple[set[str], dict, bool]:
    """The files of a folder or of a model on the Hub, its index, and whether it is a copy that is here."""
    path, is_cached = expanded(model), False
    if path.is_dir():
        files = {one.relative_to(path).as_posix() for one in path.rglob("*") if one.is_file()}
    elif not re.fullmatch(r"[\w.-]+/[\w.-]+", model) or model.startswith("."):
        raise FileNotFoundError(f"{model} does not exist: name {_WHAT}")
    else:
        files, is_cached = _files_on_hub(model, revision)
    if INDEX not in files:
        raise ValueError(f"{model} {_without_index(files)}: name {_WHAT}")
    if not path.is_dir():
        path = Path(hf_hub_download(model, INDEX, revision=revision, local_files_only=is_cached)).parent
    return files, _read_index(path / INDEX), is_cached


def _files_on_hub(model: str, revision: str | None) -> tuple[set[str], bool]:
    """The files of a model on the Hub; of the copy here where the Hub cannot be reached, and whether that is so."""
    at = f" at revision {revision}" if revision else ""
    try:
        return {one.rfilename for one in HfApi().model_info(model, revision=revision).siblings or ()}, False
    except GatedRepoError as error:
        raise FileNotFoundError(f"{model} is gated: accept its terms on the Hub, and `hf auth login`") from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(f"{model} has no revision {revision}: name a branch, tag or commit of it") from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{model} is no folder here and no model on the Hub (or a private one: `hf auth login`): name {_WHAT}"
        ) from error
    except Exception as error:  # what says that there is no network differs with the version of the Hub's client
        reason = "HF_HUB_OFFLINE is set" if isinstance(error, OfflineModeIsEnabled) else "the Hub cannot be reached"
        try:
            folder = Path(hf_hub_download(model, INDEX, revision=revision, local_files_only=True)).parent
        except (LocalEntryNotFoundError, EntryNotFoundError, OSError, ValueError):
            raise FileNotFoundError(
                f"{model}{at} is no folder here, is not in the cache, and {reason}: connect once to download it, or"
                " name a folder"
            ) from error
        return {one.relative_to(folder).as_posix() for one in folder.rglob("*") if one.is_file()}, True


def _read_index(path: Path) -> dict:
    try:
        index = read_json(path)
    except ValueError as error:
        raise ValueError(f"{error}; copy or download it again") from error
    if not isinstance(index, dict):
        raise ValueError(f"{path} is no table of components: copy or download it again")
    return index


def _settled_variant(model: str, files: set[str], index: dict, variant: str | None) -> str | None:
    """The variant of the weights to load of a checkpoint in diffusers' form."""
    part = next(part for part in DENOISERS if part in index)
    found: dict[str, set[str | None]] = {"safetensors": set(), "pickle": set()}
    for name in files:
        match = _WEIGHTS.fullmatch(name.removeprefix(f"{part}/")) if name.startswith(f"{part}/") else None
        if match and name.endswith((".safetensors", *_PICKLES)):
            found["safetensors" if name.endswith(".safetensors") else "pickle"].add(match["variant"])
    there = found["safetensors"]
    names = ", ".join(sorted(one or "none" for one in there))
    if not there:
        why = "are pickles, which are never loaded" if found["pickle"] else "are not there"
        raise ValueError(f"the weights of the {DENOISERS[part]} of {model} {why}: take a copy with .safetensors files")
    if variant is not None and variant not in there:
        raise ValueError(f"{model} has no weights of the variant {variant!r}, but: {names}")
    if variant is not None or None in there:
        return variant
    return "fp16" if "fp16" in there else sorted(one for one in there if one)[0]


def _without_index(files: set[str]) -> str:
    """What a folder without model_index.json holds instead."""
    singles = sorted(name for name in files if "/" not in name and name.endswith(".safetensors"))
    deeper = sorted(name for name in files if name.endswith(f"/{INDEX}"))
    if any("lora" in name.lower() or "adapter" in name.lower() for name in singles):
        return "holds a LoRA, which changes a checkpoint and is none"
    if deeper:
        return f"has no {INDEX}, but {deeper[0]} lies in it"
    if singles:
        return f"has no {INDEX}, but the file {singles[0]}"
    if any(name.endswith(_PICKLES) for name in files):
        return f"has no {INDEX}, and pickles, which are never loaded"
    return f"has no {INDEX}"


def _keys_of(path: Path) -> list[str]:
    """The names of the weights in a safetensors file; ValueError if it is another kind of file, or a LoRA."""
    if path.suffix.lower() in _PICKLES:
        raise ValueError(f"{path} is a pickle, which is never loaded: take the same model as .safetensors")
    if path.name == INDEX:
        raise ValueError(f"{path} is a file of a checkpoint: name its folder {path.parent}")
    if path.suffix.lower() != ".safetensors":
        raise ValueError(f"{path} is no checkpoint: name {_WHAT}")
    try:
        with safe_open(path, "pt") as file:
            keys = list(file.keys())
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: copy or download it again ({error})") from error
    if any(re.search(r"lora[._](up|down|A|B|linear)|lora_(unet|te)|hada_w|lokr_", key) for key in keys):
        raise ValueError(
            f"{path} is a LoRA, which changes a checkpoint and is none: name the checkpoint (in Python,"
            " `pipe.load_lora_weights` adds a LoRA)"
        )
    return keys
