"""Embeddings that stand for OOD prompts, from a file: those of DreamOOD, BOOD, NCIS and the like."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from sona_pipeline.common.messages import brief
from sona_pipeline.generation.prompts import word_in
from sona_pipeline.generation.settings import GenerationSettings
from sona_pipeline.pipeline import SONAPipeline, prompt_length, prompt_width

WORD = "x"
"""What stands in the prompt where a vector comes."""


def embedding_names(path: Path) -> tuple[str, ...]:
    """The names of the embeddings in a safetensors file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is another kind of file, or holds nothing.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give a safetensors file of embeddings")
    try:
        with safe_open(path, "pt") as file:
            names = tuple(sorted(file.keys()))
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file: save the embeddings as one ({brief(error)})") from error
    if not names:
        raise ValueError(f"{path} holds no embeddings: give one at least")
    return names


def given_embeddings(pipe: SONAPipeline, settings: GenerationSettings) -> dict[str, torch.Tensor]:
    """The embedding `[L, D]` of each OOD label, as the UNet takes it, if a file has them; else none.

    A vector `[D]` takes the place of a word in the OOD prompt; `[L, D]` is a whole prompt.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a label has no embedding, or one of another shape, or one that is not finite.
    """
    if not settings.ood_embeddings:
        return {}
    path = Path(settings.ood_embeddings)
    if missing := set(settings.ood_labels) - set(embedding_names(path)):
        raise ValueError(f"{path} has no embedding of {sorted(missing)[:5]}: name the labels as they are named there")
    stored = load_file(path)
    length, width = prompt_length(pipe.tokenizer, pipe.text_encoder), prompt_width(pipe.unet)
    plain, template = None, settings.ood_prompt or settings.prompt
    found = {}
    for name in settings.ood_labels:
        value = stored[name].to(pipe.device, pipe.text_encoder.dtype)
        if tuple(value.shape) not in ((width,), (length, width)) or not value.isfinite().all():
            raise ValueError(
                f"the embedding {name!r} in {path} has the shape {list(value.shape)}, but finite numbers of the shape"
                f" [{width}] or [{length}, {width}] are needed for this model"
            )
        if value.dim() == 1:
            plain = _encoded(pipe, template.format(WORD)) if plain is None else plain
            vector, value = value, plain.clone()
            value[word_in(pipe, template, WORD)] = vector
        found[name] = value
    return found


@torch.no_grad()
def _encoded(pipe: SONAPipeline, prompt: str) -> torch.Tensor:
    return pipe.encode_prompts(1, {"id_prompt": prompt}, {"id_prompt": None}, pipe.device)[0][0]
