"""Prompts on their way to what a denoiser is given, by the text encoders of a family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.utils import USE_PEFT_BACKEND, logging, scale_lora_layers, unscale_lora_layers

from sona_pipeline.pipelines.batch import Conditions
from sona_pipeline.pipelines.family import Family

logger = logging.get_logger(__name__)
Prompts = Mapping[str, str | list[str] | None]
Embeds = Mapping[str, torch.Tensor | Conditions | None]


class PromptsMixin(Family):
    """Prompts of a pipeline."""

    def check_prompts(self, batch_size: int, prompts: Prompts, embeds: Embeds) -> None:
        """Raise ValueError or TypeError for prompts or embeddings that `encode_prompts` cannot work with."""
        for name, prompt in prompts.items():
            if (prompt is None) == (embeds[name] is None):
                raise ValueError(f"Give either `{name}` or `{name}_embeds`, and not both.")
            texts = [prompt] if isinstance(prompt, str) else prompt
            if texts is not None and not (isinstance(texts, list) and all(isinstance(text, str) for text in texts)):
                raise TypeError(f"`{name}` has to be a string or a list of strings, but is {prompt!r}.")
            if isinstance(prompt, list) and len(prompt) != batch_size:
                raise ValueError(
                    f"`{name}` has {len(prompt)} entries for {batch_size} images: give one, or one an image."
                )
            if texts is not None and not all(text.strip() for text in texts):
                raise ValueError(
                    f"`{name}` is {prompt!r}, but an empty prompt means nothing: say what the image shows."
                )
        given = {f"{name}_embeds": self.as_conditions(value) for name, value in embeds.items() if value is not None}
        for name, conditions in given.items():
            self._check_embeds(name, conditions, batch_size)
        lengths = {some["prompt_embeds"].shape[1] for some in given.values()}
        if len(given) < len(embeds) and not self.text_encoders:
            missing = [f"`{name}_embeds`" for name in embeds if f"{name}_embeds" not in given]
            raise ValueError(f"The pipeline has no text encoder: load one, or give {' and '.join(missing)}, too.")
        if given and len(given) < len(embeds):
            lengths.add(self.encoded_length)
        if len(lengths) > 1:
            raise ValueError(f"Prompt embeddings of different lengths {sorted(lengths)} cannot be used in one call.")

    def as_conditions(self, value: Any) -> Any:
        """Embeddings that a caller gives, by name; a tensor is "prompt_embeds"."""
        return value if isinstance(value, dict) else {"prompt_embeds": value}

    def _check_embeds(self, name: str, given: Conditions, batch_size: int) -> None:
        shapes = self.condition_shapes
        if set(given) != set(shapes):
            raise ValueError(
                f"`{name}` has {sorted(given)}, but {sorted(shapes)} are needed: give them as `encode_texts` does."
            )
        for key, value in given.items():
            called = f"`{name}`" if len(shapes) == 1 else f"`{name}[{key!r}]`"
            if not isinstance(value, torch.Tensor):
                raise TypeError(f"{called} has to be a tensor, but is a {type(value).__name__}.")
            sides = (None, *shapes[key])
            is_alike = value.ndim == len(sides) and all(s in (None, own) for s, own in zip(sides, value.shape))
            if not is_alike or len(value) not in (1, batch_size):
                needed = ", ".join(str(side or "length") for side in shapes[key])
                raise ValueError(
                    f"{called} has the shape {tuple(value.shape)}, but [1 or {batch_size}, {needed}] is needed."
                )

    def encode_prompts(
        self,
        batch_size: int,
        prompts: Prompts,
        embeds: Embeds,
        device: torch.device,
        clip_skip: int | None = None,
        lora_scale: float | None = None,
    ) -> Conditions:
        """Conditions `[3, B, ...]` of the empty, ID and OOD prompts; each distinct text is encoded once.

        As in img2img, `clip_skip` leaves the empty prompt alone.
        """
        texts = {"uncond_prompt": [""]} | {k: [v] if isinstance(v, str) else v or [] for k, v in prompts.items()}
        wanted = {name: texts[name] for name, given in embeds.items() if given is None}
        skips = {name: None if name == "uncond_prompt" else clip_skip for name in wanted}
        encoded = self._encoded([(text, skips[name]) for name in wanted for text in wanted[name]], device, lora_scale)
        found, dtype = [], self.denoiser.dtype  # which looks at every weight
        for name, given in embeds.items():
            if given is None:
                rows = [encoded[text, skips[name]] for text in wanted[name]]
                given = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
            found.append(self._expanded(self.as_conditions(given), batch_size, device, dtype))
        return self.trimmed({key: torch.stack([one[key] for one in found]) for key in found[0]})

    def _encoded(
        self, wanted: list[tuple[str, int | None]], device: torch.device, lora_scale: float | None
    ) -> dict[tuple[str, int | None], Conditions]:
        """The conditions of texts with the layers that are skipped, a row each."""
        if wanted and lora_scale is not None:
            self._lora_scale = lora_scale
        is_scaled = wanted and lora_scale is not None and USE_PEFT_BACKEND
        for encoder in self.text_encoders if is_scaled else []:
            scale_lora_layers(encoder, lora_scale)
        found = {}
        for skip in dict.fromkeys(skip for _, skip in wanted):
            texts = list(dict.fromkeys(text for text, own in wanted if own == skip))
            for text, ids in zip(texts, self.token_ids(texts)):
                if len(ids) > self.prompt_length:
                    logger.warning(f"The prompt {text!r} is longer than {self.prompt_length} tokens and is cut.")
            conditions = self.encode_texts(texts, device, skip)
            for k, text in enumerate(texts):
                found[text, skip] = {key: value[k] for key, value in conditions.items()}
        for encoder in self.text_encoders if is_scaled else []:
            unscale_lora_layers(encoder, lora_scale)
        return found

    def _expanded(self, given: Conditions, batch_size: int, device: torch.device, dtype: torch.dtype) -> Conditions:
        """Conditions of all images; numbers go to the denoiser in its dtype, masks and lengths stay with the host."""
        moved = {}
        for key, value in given.items():
            value = value.to(device, dtype) if value.is_floating_point() else value.cpu()
            moved[key] = value.expand(batch_size, *value.shape[1:])
        return moved
