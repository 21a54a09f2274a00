"""Embeddings that stand for OOD prompts, from a file: those of DreamOOD, BOOD, NCIS and the like."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from sona_pipeline.common.messages import brief
from sona_pipeline.generation.settings import GenerationSettings
from sona_pipeline.generation.words import prompts_with
from sona_pipeline.pipelines.batch import Conditions
from sona_pipeline.pipelines.core import SONAMixin


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


class GivenEmbeddings:
    """The embeddings in a file that stand for OOD prompts; each takes the room that it takes in the file.

    A vector `[D]` takes the place of the word in the OOD prompt before the text encoder reads it, as in DreamOOD;
    `[L, D]` is a whole prompt as the text encoder gives it, as in NCIS.

    Args:
        pipe: a loaded pipeline.
        path: of the safetensors file.
        settings: with the OOD labels, which are names in the file, and the OOD prompt.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a label has no embedding, or one of another shape, or one that is not finite.
    """

    def __init__(self, pipe: SONAMixin, path: Path, settings: GenerationSettings):
        self.pipe, self.template = pipe, settings.ood_prompt or settings.prompt
        if missing := set(settings.ood_labels) - set(embedding_names(path)):
            raise ValueError(
                f"{path} has no embedding of {sorted(missing)[:5]}: name the labels as they are named there"
            )
        if list(pipe.condition_shapes) != ["prompt_embeds"]:
            raise ValueError(
                f"embeddings in a file stand for one of {list(pipe.condition_shapes)} only, and this model needs all:"
                " give OOD labels instead"
            )
        length, width = pipe.prompt_length, pipe.condition_shapes["prompt_embeds"][-1]
        with safe_open(path, "pt") as file:
            stored = {name: file.get_tensor(name).to(pipe.denoiser.dtype) for name in settings.ood_labels}
        for name, value in stored.items():
            if tuple(value.shape) not in ((width,), (length, width)) or not value.isfinite().all():
                raise ValueError(
                    f"the embedding {name!r} in {path} has the shape {list(value.shape)}, but finite numbers of the"
                    f" shape [{width}] or [{length}, {width}] are needed for this model"
                )
        self.stored = stored

    def __call__(self, labels: Sequence[str]) -> Conditions:
        """Prompts `[B, L, D]` of OOD labels, as the denoiser takes them."""
        return {"prompt_embeds": torch.stack([self._prompt(self.stored[label]) for label in labels])}

    def _prompt(self, value: torch.Tensor) -> torch.Tensor:
        if value.dim() == 1:
            value = prompts_with(self.pipe, self.template, value[None])[0]
        return value.to(self.pipe.device, self.pipe.denoiser.dtype)
