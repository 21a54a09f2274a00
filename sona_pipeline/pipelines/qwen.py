"""Families whose prompts are read by a language model of Qwen, and whose transformers take 2 x 2 latents a token."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import pad

from sona_pipeline.pipelines.batch import Conditions
from sona_pipeline.pipelines.family import Family
from sona_pipeline.pipelines.schedules import Schedule, check_scheduler_kind, even


class QwenMixin(Family):
    """Prompts in the words of a chat, each with as many tokens as it has, and steps that are even before the shift."""

    text_encoder: Any
    tokenizer: Any
    transformer: Any
    patch_size = 2
    layer = -1
    """The hidden states that the transformer takes."""
    dropped_tokens = 0
    """Tokens at the start of a chat that are read, but not passed on."""
    encoder_options: dict[str, Any] = {}
    """More arguments of the text encoder."""

    def in_chat(self, text: str) -> str:
        """A prompt in the words of a chat."""
        raise NotImplementedError

    @property
    def prompt_width(self) -> int:
        """Width of the hidden states that the transformer takes."""
        raise NotImplementedError

    @property
    def denoiser(self) -> Any:
        """The transformer."""
        return self.transformer

    @property
    def image_size(self) -> int:
        """Side in pixels of the images that the transformers were made for: 1024."""
        return 128 * self.vae_scale_factor

    def check_text_encoder(self) -> None:
        """Raise ValueError for a scheduler that is not made for flows, or hidden states of another width."""
        if self.scheduler is not None:
            check_scheduler_kind(self.scheduler, is_flow=True)
        if self.text_encoder is not None and self.transformer is not None:
            width = self.text_encoder.config.get_text_config().hidden_size
            if width != self.prompt_width:
                raise ValueError(
                    f"The text encoder gives embeddings of width {width} and the transformer takes"
                    f" {self.prompt_width}: take both from one checkpoint of {self.title}."
                )

    @property
    def text_encoders(self) -> list[Any]:
        """The one, if it is there."""
        return [] if self.text_encoder is None else [self.text_encoder]

    @property
    def condition_shapes(self) -> dict[str, tuple[int | None, ...]]:
        """The hidden states, and which of them are tokens: 1, and 0 for the padding behind."""
        return {"prompt_embeds": (None, self.prompt_width), "prompt_embeds_mask": (None,)}

    @property
    def prompt_length(self) -> int:
        """Tokens that are passed on, chat and all: 512, as by the pipelines of diffusers."""
        return 512

    def token_ids(self, texts: list[str]) -> list[list[int]]:
        """The tokens of texts in a chat, all of them."""
        found = self.tokenizer([self.in_chat(text) for text in texts], verbose=False).input_ids
        return [ids[self.dropped_tokens :] for ids in found]

    def encode_texts(self, texts: list[str], device: torch.device, clip_skip: int | None = None) -> Conditions:
        """Hidden states `[N, 512, D]`, computed up to the longest text only, and their mask `[N, 512]` on the CPU."""
        if clip_skip is not None:
            raise ValueError(f"`clip_skip` is {clip_skip}, but {self.title} takes one layer only: leave it out.")
        tokens = self.tokenizer(
            [self.in_chat(text) for text in texts],
            padding=True,
            padding_side="right",
            max_length=self.prompt_length + self.dropped_tokens,
            truncation=True,
            return_tensors="pt",
        )
        outputs = self.text_encoder(
            input_ids=tokens.input_ids.to(device),
            attention_mask=tokens.attention_mask.to(device),
            output_hidden_states=True,
            **self.encoder_options,
        )
        mask = tokens.attention_mask[:, self.dropped_tokens :]
        states = outputs.hidden_states[self.layer][:, self.dropped_tokens :]
        states = states.masked_fill((mask == 0)[..., None].to(device), 0)
        room = self.prompt_length - mask.shape[1]
        return {"prompt_embeds": pad(states, (0, 0, 0, room)), "prompt_embeds_mask": pad(mask, (0, room))}

    def trimmed(self, conditions: Conditions) -> Conditions:
        """Conditions `[P, B, L, ...]` up to the longest prompt."""
        longest = int(conditions["prompt_embeds_mask"].sum(dim=-1).max())
        return {name: value[:, :, :longest] for name, value in conditions.items()}

    def schedule_of(self, steps: int, latents: torch.Size, timesteps: Any = None, sigmas: Any = None) -> Schedule:
        """Even steps, which the scheduler shifts."""
        return even(super().schedule_of(steps, latents, timesteps, sigmas))
