"""The state of a training on disk: nested state dictionaries as one safetensors file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sona_pipeline.common.files import write_with


def save_state(path: Path, state: dict) -> None:
    """Write dictionaries, lists, numbers, texts and tensors, nested in any way; the file is whole or not there."""
    tensors: dict[str, torch.Tensor] = {}
    plan = json.dumps(_taken_apart(state, tensors))
    write_with(path, lambda partial: save_file(tensors, partial, {"state": plan}))


def load_state(path: Path) -> dict:
    """What `save_state` wrote, with tensors on the CPU; tuples come back as lists.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            plan = json.loads(file.metadata()["state"])
            return _put_together(plan, {name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (SafetensorError, TypeError, LookupError, ValueError) as error:
        raise ValueError(f"{path} is damaged: remove it to train from the beginning ({error})") from error


def _taken_apart(value: Any, tensors: dict[str, torch.Tensor]) -> dict:
    """`value` as JSON, with its tensors moved to `tensors`; dictionaries become lists, as JSON keys are texts only."""
    if isinstance(value, torch.Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, _taken_apart(item, tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"list": [_taken_apart(item, tensors) for item in value]}
    return {"value": value}


def _put_together(plan: dict, tensors: dict[str, torch.Tensor]) -> Any:
    kind, content = next(iter(plan.items()))
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _put_together(item, tensors) for key, item in content}
    return [_put_together(item, tensors) for item in content] if kind == "list" else content
