"""Words of a prompt as the vectors that a text encoder reads, and prompts with other vectors in their place."""

from __future__ import annotations

from typing import Any

import torch

from sona_pipeline.pipelines.core import SONAMixin

_WORD = "x"
"""What stands in the prompt where a vector comes: one token."""


@torch.no_grad()
def word_vector(pipe: SONAMixin, label: str) -> torch.Tensor:
    """The vector `[D]` that stands for a label in the table of the text encoder; the mean of those of its tokens."""
    encoder = _encoder(pipe)
    tokens = torch.tensor(pipe.token_ids([label])[0][1:-1], device=encoder.device)
    return encoder.get_input_embeddings()(tokens).mean(dim=0)


@torch.no_grad()
def prompts_with(pipe: SONAMixin, template: str, vectors: torch.Tensor) -> torch.Tensor:
    """Prompts `[N, L, E]` in which the text encoder reads the vectors `[N, D]` in place of the word.

    Args:
        pipe: with a single text encoder of CLIP's kind.
        template: of the prompt, with "{}" where the word comes.
        vectors: as `word_vector` gives them.

    Raises:
        ValueError: the prompt is so long that the word is cut off.
    """
    place = len(pipe.token_ids([template.split("{}")[0].rstrip()])[0]) - 1
    if place >= pipe.prompt_length - 1:
        raise ValueError(
            f"the prompt {template!r} has its word after more tokens than the text encoder reads, which is"
            f" {pipe.prompt_length}: shorten it"
        )

    def put(_: torch.nn.Module, arguments: tuple, output: torch.Tensor) -> torch.Tensor:
        return output.index_put((torch.arange(len(output)), torch.tensor(place)), vectors.to(output))

    hook = _encoder(pipe).get_input_embeddings().register_forward_hook(put)
    try:
        return pipe.encode_texts([template.format(_WORD)] * len(vectors), pipe.device)["prompt_embeds"]
    finally:
        hook.remove()


def _encoder(pipe: SONAMixin) -> Any:
    (encoder,) = pipe.text_encoders
    return encoder
