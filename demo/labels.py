"""OOD labels that the page suggests for an ID label."""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import Executor
from functools import cached_property

import numpy as np
import torch
from torch.nn.functional import normalize

from sona_pipeline import RULES, Names, SONAMixin, pipeline_encoder, spoken, usable_labels


class Suggestions:
    """Draws OOD labels for an ID label, by how near the model's text encoder finds them.

    Args:
        pipe: whose text encoder compares labels.
        labels: to draw from.
        worker: the one thread that models run in.
    """

    def __init__(self, pipe: SONAMixin, labels: Sequence[Names], worker: Executor):
        self.labels, self._encode, self._worker = list(labels), pipeline_encoder(pipe), worker

    def __call__(self, id_label: str, rule: str) -> str:
        """A label that does not collide with `id_label`, drawn by a rule of `ood_labels.RULES`.

        Raises:
            ValueError: no label is left, or there is no such rule.
        """
        if rule not in RULES:
            raise ValueError(f"the suggestion is {rule!r}, but has to be one of {sorted(RULES)}")
        usable, _ = usable_labels(self.labels, {id_label: spoken(id_label)})
        return usable[random.choice(RULES[rule](self._worker.submit(self._near, id_label, usable).result())[0])]

    def _near(self, id_label: str, labels: Sequence[str]) -> np.ndarray:
        """Cosine similarities `[1, N]` of some of the labels to an ID label."""
        places = {names[0]: k for k, names in enumerate(self.labels)}
        some = self._embeddings[[places[label] for label in labels]]
        return (normalize(self._encode([id_label]).float()) @ some.T).numpy()

    @cached_property
    def _embeddings(self) -> torch.Tensor:
        return normalize(self._encode([names[0] for names in self.labels]).float())
