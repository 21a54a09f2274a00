"""OOD labels: where they come from, which of them collide with ID classes, and which may be drawn for a class."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer, CLIPTextModel
from transformers.utils import cached_file

from sona_pipeline.common.assets import EMBEDDED_MODELS, MODEL_LABELS
from sona_pipeline.common.files import read_json, read_text
from sona_pipeline.common.loading import loading
from sona_pipeline.common.names import expanded
from sona_pipeline.data.class_names import Names, composed, imagenet_labels, normal, spoken, synsets
from sona_pipeline.generation.embeddings import embedding_names
from sona_pipeline.generation.settings import LabelSettings
from sona_pipeline.pipelines.batch import Conditions
from sona_pipeline.pipelines.core import SONAMixin

IMAGENET = "imagenet"
POOLING = "1_Pooling/config.json"
"""Where models of sentence-transformers say how tokens become one vector."""
LARGE = 1 << 30
"""Weights of text encoders from which a copy for the CPU would take too long."""

Encode = Callable[[Sequence[str]], torch.Tensor]
"""Texts to embeddings `[N, D]`."""


@dataclass(frozen=True)
class Collision:
    """An OOD label that means, or may mean, the ID class `id_class`, and why."""

    label: str
    id_class: str
    reason: str


def labels_of(
    chosen: LabelSettings, model: str, id_names: Mapping[str, Names]
) -> tuple[tuple[str, ...], list[Collision]]:
    """The OOD labels or prompts that settings name, without those that collide with an ID class; and the collisions.

    Labels of a record are taken as they are, unless there are prompts in their place.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: both labels and prompts are given, or no label is left.
    """
    named_by = chosen.ood_labels
    if isinstance(named_by, tuple):
        if not chosen.ood_prompts:
            return named_by, []
        named_by = None
    options = {"--ood-labels": named_by, "--ood-prompts": chosen.ood_prompts}
    options["--ood-embeddings"] = chosen.ood_embeddings
    if len(named := [option for option, value in options.items() if value]) > 1:
        raise ValueError(f"{' and '.join(named)} exclude each other: give one of them")
    if chosen.ood_embeddings:
        return embedding_names(chosen.ood_embeddings), []
    labels: list[Names]
    if chosen.ood_prompts:
        labels = [(line,) for line in read_lines(chosen.ood_prompts)]
    elif named_by is None and model in EMBEDDED_MODELS:
        known = [(label,) for label in embedded_labels(model)]
        return usable_labels(known, id_names, keep_collisions=chosen.keep_collisions)[0], []
    else:
        labels = read_labels(named_by or IMAGENET)
    return usable_labels(labels, id_names, keep_collisions=chosen.keep_collisions)


def embedded_labels(model: str) -> list[str]:
    """The labels that an embedded model knows."""
    return read_lines(MODEL_LABELS / f"{model}.txt")


def read_labels(source: str | Path) -> list[Names]:
    """OOD labels with their synonyms.

    Args:
        source: a text file with a label on each line and synonyms after commas (WordNet ids become words), or
            "imagenet" for the 1,000 labels of ImageNet-1k.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds none.
    """
    if str(source) == IMAGENET:
        return imagenet_labels()
    return [spoken(line) for line in read_lines(source)]


def read_lines(source: str | Path) -> list[str]:
    """The lines of a text file, each once, without blank ones; ValueError if there are none."""
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give a text file with one entry a line")
    lines = list(dict.fromkeys(line.strip() for line in composed(read_text(path)).splitlines()))
    if not any(lines):
        raise ValueError(f"no OOD labels in {path}: give at least one, each on a line of its own")
    return [line for line in lines if line]


def usable_labels(
    labels: Sequence[Names], id_names: Mapping[str, Names], *, keep_collisions: bool = False
) -> tuple[tuple[str, ...], list[Collision]]:
    """The labels without those that collide with an ID class, and the collisions.

    With `keep_collisions`, only labels whose prompts would be those of an ID class are left out.

    Raises:
        ValueError: no label is left.
    """
    collisions = find_collisions(labels, id_names)
    id_words = {normal(names[0]) for names in id_names.values()}
    dropped = {c.label for c in collisions if not keep_collisions or normal(c.label) in id_words}
    kept = tuple(dict.fromkeys(names[0] for names in labels if names[0] not in dropped))
    if not kept:
        why = [f", since {c.label!r} collides with {c.id_class!r} ({c.reason})" for c in collisions[:1]]
        raise ValueError(f"no OOD labels are left of {len(labels)}{''.join(why)}: give others, or keep collisions")
    return kept, [c for c in collisions if c.label in dropped]


def find_collisions(labels: Sequence[Names], id_names: Mapping[str, Names]) -> list[Collision]:
    """The OOD labels that equal an ID class, share a synset of WordNet with one, or contain one or are contained.

    Names are compared word by word, without case and plural s: "tiger shark" collides with "shark" both ways round,
    "catfish" and "cat" do not. A label's and a class's synonyms count like their names.
    """
    equal = {normal(name): id_class for id_class, names in id_names.items() for name in names}
    longest = max((len(name.split()) for name in equal), default=0)
    within = {part: id_class for name, id_class in equal.items() for part in _parts(name, longest)}
    in_synset = {synset: id_class for name, id_class in equal.items() for synset in synsets(name)}

    def collision(names: Names) -> Collision | None:
        for name in map(normal, names):
            if name in equal:
                return Collision(names[0], equal[name], "the same name")
            for synset in sorted(synsets(name) & in_synset.keys()):
                return Collision(names[0], in_synset[synset], f"a synonym ({synset})")
            for part in _parts(name, longest):
                if part in equal:
                    return Collision(names[0], equal[part], f"contains {part!r}")
            if name in within:
                return Collision(names[0], within[name], "is part of its name")
        return None

    return [found for names in labels if (found := collision(names))]


def _parts(name: str, longest: int) -> list[str]:
    """All runs of up to `longest` words in a name."""
    words = name.split()
    ends = [(i, j) for i in range(len(words)) for j in range(i + 1, min(i + longest, len(words)) + 1)]
    return [" ".join(words[i:j]) for i, j in ends]


def similarities(encode: Encode, id_texts: Sequence[str], ood_texts: Sequence[str]) -> np.ndarray:
    """Cosine similarities `[ID texts, OOD texts]` of the texts' embeddings."""
    one, other = (torch.nn.functional.normalize(encode(texts).float(), dim=-1) for texts in (id_texts, ood_texts))
    return (one @ other.T).cpu().numpy()


def pipeline_encoder(pipe: SONAMixin) -> Encode:
    """The pipeline's own text encoders, in float32 on the CPU, the same for all devices; large ones as they are.

    The embedding of a text is the pooled condition of the family; or CLIP's pooled output; or the mean over the tokens
    of the prompt.
    """
    encoders = {name: part for name, part in pipe.components.items() if any(part is one for one in pipe.text_encoders)}
    if sum(one.numel() for part in encoders.values() for one in part.parameters()) > LARGE:
        return functools.partial(_embedded, pipe)
    copies = {name: copy.deepcopy(part).float().cpu() for name, part in encoders.items()}
    if list(pipe.condition_shapes) == ["prompt_embeds"] and isinstance(pipe.text_encoder, CLIPTextModel):
        return _encoder(pipe.tokenizer, copies["text_encoder"], lambda outputs, mask: outputs.pooler_output)
    twin = copy.copy(pipe)
    for name, part in copies.items():
        setattr(twin, name, part)
    return functools.partial(_embedded, twin)


@torch.no_grad()
def _embedded(pipe: SONAMixin, texts: Sequence[str], batch_size: int = 32) -> torch.Tensor:
    """One vector for each text, of what it becomes for the denoiser."""
    device, found = pipe.text_encoders[0].device, []
    for start in range(0, len(texts), batch_size):
        conditions = pipe.encode_texts(list(texts[start : start + batch_size]), device)
        pooled = conditions.get("pooled_prompt_embeds")
        found.append((_mean_of_prompt(conditions) if pooled is None else pooled).float().cpu())
    return torch.cat(found)


def _mean_of_prompt(conditions: Conditions) -> torch.Tensor:
    """The mean over the tokens, by the mask `[N, L]` or the lengths `[N]` that come with the prompts `[N, L, D]`."""
    states = conditions["prompt_embeds"].float()
    weights, places = states.new_ones(states.shape[:2]), torch.arange(states.shape[1], device=states.device)
    for value in conditions.values():
        if not value.is_floating_point() and value.shape in (states.shape[:1], states.shape[:2]):
            value = value.to(states.device)
            weights = value if value.dim() == 2 else places < value[:, None]
    return _weighted(states, weights)


def text_encoder(name: str) -> Encode:
    """A text encoder of transformers such as BERT, sentence-transformers' or CLIP's, by Hub id or folder, on the CPU.

    The mean over the tokens is the embedding, or what a model of sentence-transformers says in its place.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: it cannot be loaded.
    """
    name = str(expanded(name))
    with loading(name, "text encoder"):
        model = AutoModel.from_pretrained(name, use_safetensors=True).eval()
        tokenizer = AutoTokenizer.from_pretrained(name)
        place = cached_file(name, POOLING, _raise_exceptions_for_missing_entries=False)
    pool = _POOLS[_pooling(read_json(Path(place)))] if place else _mean_of_tokens
    return _encoder(tokenizer, getattr(model, "text_model", model), pool)


def _pooling(config: dict) -> str:
    """The name in `_POOLS` of what sentence-transformers makes one vector of tokens by; ValueError for other names."""
    named = [
        key.removeprefix("pooling_mode_").removesuffix("_tokens")
        for key, value in config.items()
        if value is True and key.startswith("pooling_mode_")
    ]
    chosen = str(config.get("pooling_mode") or "+".join(named)).removesuffix("_token")
    if chosen not in _POOLS:
        raise ValueError(f"the text encoder pools tokens by {chosen!r}: take one that does it by {' or '.join(_POOLS)}")
    return chosen


def _mean_of_tokens(outputs: Any, mask: torch.Tensor) -> torch.Tensor:
    return _weighted(outputs.last_hidden_state, mask)


def _first_token(outputs: Any, mask: torch.Tensor) -> torch.Tensor:
    return outputs.last_hidden_state[torch.arange(len(mask)), mask.int().argmax(dim=1)]


def _last_token(outputs: Any, mask: torch.Tensor) -> torch.Tensor:
    last = mask.shape[1] - 1 - mask.int().flip(1).argmax(dim=1)
    return outputs.last_hidden_state[torch.arange(len(mask)), last]


_POOLS = {"mean": _mean_of_tokens, "cls": _first_token, "lasttoken": _last_token}


def _weighted(states: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The mean of states `[N, L, D]` over the tokens by weights `[N, L]`."""
    weights = weights[..., None].to(states)
    return (states * weights).sum(dim=1) / weights.sum(dim=1)


def _encoder(tokenizer: Any, model: Any, pool: Callable, batch_size: int = 256) -> Encode:
    @torch.no_grad()
    def encode(texts: Sequence[str]) -> torch.Tensor:
        pooled = []
        for start in range(0, len(texts), batch_size):
            inputs = tokenizer(
                list(texts[start : start + batch_size]), padding=True, truncation=True, return_tensors="pt"
            ).to(model.device)
            outputs = model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask)
            pooled.append(pool(outputs, inputs.attention_mask).cpu())
        return torch.cat(pooled)

    return encode
