"""Diffusion checkpoints: loaded for a device, told apart, and fitted with a batch size."""

from __future__ import annotations

import hashlib
import logging
import re
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import SingleFileComponentError
from diffusers.utils import logging as diffusers_logging
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from sona_pipeline.common.assets import EMBEDDED_MODELS
from sona_pipeline.common.devices import check_compiler, check_dtype, default_dtype, usable_device
from sona_pipeline.common.messages import brief
from sona_pipeline.common.names import expanded
from sona_pipeline.common.quiet import without_warnings
from sona_pipeline.common.settings import check_ranges
from sona_pipeline.generation.families import distilled_by_name, is_flow
from sona_pipeline.generation.model_files import ModelPlace, find_model
from sona_pipeline.generation.settings import BY_FAMILY, DTYPES, SCHEDULERS, ModelSettings
from sona_pipeline.pipelines.core import SONAMixin, room_to_compile
from sona_pipeline.pipelines.schedules import usable_scheduler

logger = logging.getLogger(__name__)
_SAMPLES, _SAMPLE_BYTES = 64, 1 << 14


def load_pipeline(model: str, device: str | torch.device | None = None, **options: Any) -> SONAMixin:
    """The pipeline of a checkpoint of any family, ready to generate.

    Args:
        model: Hub id, folder, or .safetensors file; "tiny" and "cifar" are embedded.
        device: the fastest there is by default.
        options: the other fields of `ModelSettings`: `revision`, `variant`, `dtype`, `scheduler`, `channels_last`, ...

    Raises:
        ValueError: a name is not one of those there, the device or its dtype or its compiler cannot be used, the
            checkpoint is another kind of model, damaged, pickled, or has code that is not trusted.
        FileNotFoundError: the checkpoint is not there.
    """
    return load_model(ModelSettings(model, device=None if device is None else str(device), **options))


def load_model(settings: ModelSettings, device: torch.device | None = None) -> SONAMixin:
    """The pipeline that settings name, on `device` if they leave it open; see `load_pipeline`.

    With bfloat16 the VAE computes in float32: else it would leave a trace that detectors find, as
    `examples/benchmarks/half_precision.py` shows.
    """
    check_ranges(settings)
    place = usable_device(device if settings.device is None else settings.device)
    found, embedded = model_place(settings), settings.model in EMBEDDED_MODELS
    if embedded:
        settings = replace(settings, trust_remote_code=True)  # it is this package's own
        diffusers_logging.disable_progress_bar()
        transformers_logging.disable_progress_bar()
    _check_scheduler_name(settings, found)
    on_cpu, dtype = place.type == "cpu", DTYPES[settings.dtype or default_dtype(place, is_flow(found.family))]
    check_dtype(place, dtype)
    if settings.compile:
        check_compiler(place)
    with without_warnings() if embedded else nullcontext():  # an autoencoder that is none of diffusers' own
        pipe = _loaded(found, settings, dtype)
    pipe = pipe if on_cpu else pipe.to(place)
    if not is_flow(found.family):
        kind = SCHEDULERS[BY_FAMILY.get(settings.scheduler, settings.scheduler)]
        pipe.scheduler = usable_scheduler(kind.from_config(pipe.scheduler.config))
    if settings.channels_last if settings.channels_last is not None else not (on_cpu and dtype == torch.bfloat16):
        for part in (pipe.denoiser, pipe.vae):
            _lay_channels_last(part)
    if settings.vae_slicing if settings.vae_slicing is not None else not on_cpu:
        pipe.vae.enable_slicing()
    if settings.compile:
        pipe.denoiser.compile(dynamic=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def model_place(settings: ModelSettings) -> ModelPlace:
    """Where the model that settings name lies, and of which family it is; see `find_model`."""
    if embedded := EMBEDDED_MODELS.get(settings.model):
        return ModelPlace(str(embedded))
    return find_model(settings.model, settings.revision, settings.variant, settings.model_config)


def _check_scheduler_name(settings: ModelSettings, found: ModelPlace) -> None:
    if is_flow(found.family) and settings.scheduler not in BY_FAMILY:
        raise ValueError(
            f"the scheduler {settings.scheduler!r} is for models that predict noise, and {settings.model}"
            f" ({found.family.title}) predicts the velocity of a flow: leave --scheduler out, which takes its own"
        )


def _lay_channels_last(part: torch.nn.Module) -> None:
    """Lay a network out as most convolutions are fastest; one with convolutions over time has no such form."""
    if all(one.dim() < 5 for one in part.parameters()):
        part.to(memory_format=torch.channels_last)


def _loaded(found: ModelPlace, settings: ModelSettings, dtype: torch.dtype) -> SONAMixin:
    """The pipeline of the files that were found, on the CPU; in bfloat16, what computes in it.

    That is the denoiser; of flow models the text encoders, too, which are large and made for it.
    """
    if dtype != torch.bfloat16:
        return _from_files(found, settings, dtype)
    parts = {"vae": torch.float32, "default": dtype} if is_flow(found.family) else torch.float32
    pipe = _from_files(found, settings, torch.float32 if found.is_file else parts)
    for part in (pipe.denoiser, *(pipe.text_encoders if is_flow(found.family) else ())):
        part.to(dtype)
    return pipe


def _from_files(found: ModelPlace, settings: ModelSettings, dtype: torch.dtype | dict[str, torch.dtype]) -> SONAMixin:
    """The pipeline of the files that were found, on the CPU.

    Raises:
        FileNotFoundError: files are missing.
        ValueError: they are damaged, or no such model.
    """
    if found.variant and not settings.variant:
        logger.info("The weights of %s are there as the variant %s only, which is taken.", found.place, found.variant)
    if word := distilled_by_name(found.place):
        logger.warning(
            "%s is distilled to few steps, if %r in its name says so, and has no use for a row without a prompt: take"
            " the base model.",
            *(found.place, word),
        )
    try:
        if found.is_file:
            pipe = found.family.from_single_file(found.place, config=_config_place(settings), dtype=dtype)
            pipe.register_to_config(_name_or_path=found.place)
            return pipe
        return found.family.from_pretrained(
            found.place,
            revision=settings.revision,
            variant=found.variant,
            local_files_only=found.is_cached,
            use_safetensors=True,
            trust_remote_code=settings.trust_remote_code,
            dtype=dtype,
        )
    except SingleFileComponentError as error:
        part = str(error).partition("Failed to load ")[2].partition(".")[0]
        raise ValueError(
            f"{found.place} has no weights of {part}: name the folder of the whole model, or give the other parts to"
            f" `{found.family.__name__}.from_single_file`"
        ) from error
    except (OSError, EntryNotFoundError, SafetensorError) as error:
        if isinstance(error, SafetensorError) or "Unable to load weights" in str(error):
            raise ValueError(
                f"weights of {found.place} are damaged: copy or download it again ({brief(error)})"
            ) from error
        needs = (
            "its configuration, which comes from the Hub: connect once, or name it by --model-config"
            if found.is_file and not settings.model_config
            else "all files of it"
        )
        raise FileNotFoundError(f"{found.place} cannot be loaded without {needs} ({brief(error)})") from error
    except (TypeError, RuntimeError, AttributeError, LookupError, ArithmeticError, ValueError) as error:
        if isinstance(error, ValueError) and not str(error).startswith("Cannot load"):  # one of `check_components`
            raise
        raise ValueError(
            f"{found.place} cannot be loaded: the configuration of a component is not complete, or not that of its"
            f" weights ({brief(error)})"
        ) from error


def _config_place(settings: ModelSettings) -> str | None:
    return str(expanded(settings.model_config)) if settings.model_config else None


def identity(pipe: SONAMixin) -> dict[str, str]:
    """What tells a loaded checkpoint from others: name, commit on the Hub or fingerprint of the files, scheduler.

    A pipeline that was put together in memory has neither, and is called so.
    """
    name = pipe.name_or_path or "in memory"
    if Path(name).exists():
        name, version = Path(name).resolve().name, _fingerprint(Path(name))
    else:
        commit = re.search(r"snapshots/([0-9a-f]{40})", Path(str(pipe.denoiser.config.get("_name_or_path"))).as_posix())
        version = commit[1] if commit else "unknown"
    return {"model": name, "model_revision": version, "scheduler": type(pipe.scheduler).__name__}


def _fingerprint(place: Path) -> str:
    """A hash of names and sizes of a checkpoint's weights and settings, and of samples all over each file."""
    found = hashlib.sha256()
    files = [p for p in place.rglob("*") if p.suffix in (".json", ".safetensors", ".txt") and p.is_file()]
    for path in sorted(files) or [place]:
        size = path.stat().st_size
        found.update(f"{path.relative_to(place).as_posix()} {size}\n".encode())
        with path.open("rb") as file:
            for k in range(_SAMPLES):
                file.seek(max(0, size - _SAMPLE_BYTES) * k // (_SAMPLES - 1))
                found.update(file.read(_SAMPLE_BYTES))
    return found.hexdigest()[:16]


@torch.no_grad()
def find_batch_size(pipe: SONAMixin, size: int, most: int = 256, gain: float = 0.03) -> int:
    """The smallest batch size that the pipeline runs at nearly full speed with, and that fits into memory.

    Doubles the batch as long as images a second in the UNet grow by `gain`.

    Args:
        pipe: a loaded pipeline.
        size: side of the images in pixels.
        most: largest batch to try.
        gain: relative gain in speed that is worth twice the memory.
    """
    best, batch_size, speed = 1, 1, 0.0
    while batch_size <= most:
        try:
            now = batch_size / _seconds_of_step(pipe, batch_size, size)
        except torch.OutOfMemoryError:
            torch.accelerator.empty_cache()
            return max(1, best // 2)  # the stages of a run overlap, and need more than one at a time
        if now < speed * (1 + gain):
            break
        best, speed, batch_size = batch_size, now, 2 * batch_size
    return best


def _seconds_of_step(pipe: SONAMixin, batch_size: int, size: int) -> float:
    """Median time of three UNet calls for a batch, after the VAE has taken the batch both ways."""
    device = pipe.device
    pixels = torch.zeros(batch_size, pipe.image_channels, size, size, dtype=pipe.vae.dtype, device=device)
    latents = pipe.encode_image(pixels, device, None)
    pipe.decode(latents, "pt")
    prompts = dict.fromkeys(("id_prompt", "ood_prompt"), "a photo")
    conditions = pipe.encode_prompts(batch_size, prompts, {"uncond_prompt": None, **dict.fromkeys(prompts)}, device)
    t, times = pipe.schedule_of(50, latents.shape).set(pipe.scheduler, device)[0], []
    with room_to_compile(pipe.denoiser):
        for _ in range(4):
            started = time.perf_counter()
            pipe.predict_noise(latents, t, conditions)[0].sum().item()
            times.append(time.perf_counter() - started)
    return sorted(times[1:])[1]
