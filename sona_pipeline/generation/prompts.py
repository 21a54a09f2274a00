"""Prompts as the text encoder reads them: which are cut, which are equal, and which say nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sona_pipeline.generation.settings import GenerationSettings
from sona_pipeline.pipelines.core import SONAMixin

_NO_WORD = re.compile(r"[\W\d_]*|n\d{8}")
"""Names without a letter, and WordNet ids that ImageNet does not know."""


def check_prompts(classes: Sequence[str], pipe: SONAMixin, settings: GenerationSettings) -> None:
    """Raise ValueError if an OOD prompt is the prompt of an ID class for the text encoder, which reads its beginning.

    Args:
        classes: the ID classes.
        pipe: whose tokenizer says so.
        settings: with the labels and the templates of the prompts.
    """
    id_prompts = [settings.id_prompt_of(name) for name in classes]
    prompt_of = dict(zip(_as_read(pipe, id_prompts), id_prompts))
    ood_prompts = settings.all_ood_prompts(classes)
    for read, prompt in zip(_as_read(pipe, ood_prompts), ood_prompts):
        if read in prompt_of:
            raise ValueError(
                f"the OOD prompt {_short(prompt)} and the ID prompt {_short(prompt_of[read])} are one for the text"
                f" encoder, which reads {pipe.prompt_length} tokens: shorten them, or"
                " leave the label out"
            )


def prompt_doubts(classes: Sequence[str], pipe: SONAMixin, settings: GenerationSettings) -> list[str]:
    """What is to be said of prompts that may be used, but hardly mean what they should; a sentence each.

    Args:
        classes: the ID classes.
        pipe: whose tokenizer says how much of a prompt is read.
        settings: with the labels and the templates of the prompts.
    """
    words = {name: settings.id_label(name) for name in classes}
    id_prompts = [settings.id_prompt_of(name) for name in classes]
    doubts = []
    if bare := [name for name, word in words.items() if _NO_WORD.fullmatch(word)]:
        doubts.append(
            f"{len(bare)} of {len(classes)} classes have no words but {bare[:3]}, so that a prompt is"
            f" {settings.id_prompt_of(bare[0])!r}: say what they are by --class-names, unless that is what they show"
        )
    length = pipe.prompt_length
    prompts = list(dict.fromkeys([*id_prompts, *settings.all_ood_prompts(classes)]))
    if cut := [prompt for prompt, tokens in zip(prompts, pipe.token_ids(prompts)) if len(tokens) > length]:
        doubts.append(f"{len(cut)} prompts are cut after {length} tokens, such as {_short(cut[0])}: shorten them")
    first: dict[tuple[int, ...], str] = {}
    for name, read in zip(classes, _as_read(pipe, id_prompts)):
        other = first.setdefault(read, name)
        if other != name:
            doubts.append(
                f"the classes {other!r} and {name!r} have one prompt, {_short(settings.id_prompt_of(name))}: tell them"
                " apart by --class-names"
            )
    return doubts


def _as_read(pipe: SONAMixin, prompts: Sequence[str]) -> list[tuple[int, ...]]:
    """The tokens of each prompt that the text encoder reads; the last one of those that are cut is the end."""
    if not prompts:
        return []
    length = pipe.prompt_length
    found = map(tuple, pipe.token_ids(list(prompts)))
    return [ids if len(ids) <= length else ids[: length - 1] for ids in found]


def _short(prompt: str) -> str:
    return repr(prompt if len(prompt) <= 60 else f"{prompt[:60]}...")
