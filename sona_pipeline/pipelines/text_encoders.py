"""CLIP text encoders, which several families have one or two of."""

from __future__ import annotations

import math
from typing import Any


def prompt_length(tokenizer: Any, text_encoder: Any) -> int:
    """Tokens of a prompt: what the tokenizer says, if it says so, and no more than the text encoder has places for."""
    places = getattr(text_encoder.config, "max_position_embeddings", None)
    length = min(tokenizer.model_max_length or math.inf, places or math.inf)
    if length > 1_000_000:
        raise ValueError(
            "Neither the tokenizer (model_max_length) nor the text encoder (max_position_embeddings) says how long a"
            " prompt may be: set `model_max_length` in tokenizer_config.json."
        )
    return int(length)
