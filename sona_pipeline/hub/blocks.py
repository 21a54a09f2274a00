"""A family's blocks for modular diffusers: one file of code, and what leads from it to weights."""

from __future__ import annotations

import ast
import importlib
import json
from pathlib import Path
from typing import Any

from sona_pipeline.common.assets import PACKAGE
from sona_pipeline.common.files import read_json, write_text
from sona_pipeline.pipelines.families import FAMILIES

CODE, BLOCKS, PIPELINE = "block.py", "modular_config.json", "modular_model_index.json"
"""Files that diffusers looks for: the code, what names its class, and what its components are."""
OURS = "sona_pipeline.pipelines."


def blocks_name(family: str) -> str:
    """Name of the class of a family's blocks."""
    return f"{FAMILIES[family]}Blocks"


def blocks_file(family: str) -> str:
    """The file of a family's blocks: that of its pipeline, then the blocks, then the two put together."""
    pipeline = (PACKAGE / "custom_pipelines" / f"{family}.py").read_text(encoding="utf-8")
    bodies = [_body(path) for path in _imported_before(PACKAGE / "pipelines" / "modular" / "blocks.py", [])]
    own = f'''class {blocks_name(family)}(SONABlocks, SequentialPipelineBlocks):
    """The blocks of `{FAMILIES[family]}`."""

    def __init__(self):
        super().__init__({FAMILIES[family]})
'''
    return "\n\n\n".join([pipeline.rstrip(), *bodies, own])


def _imported_before(path: Path, found: list[Path]) -> list[Path]:
    """A module of the blocks after those that it imports, each once."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{OURS}modular."):
            other = path.with_name(f"{(node.module or '').rpartition('.')[2]}.py")
            if other not in found:
                _imported_before(other, found)
    found.append(path)
    return found


def _body(path: Path) -> str:
    """The code of a module without what is of this package or for it only; its docstring as a comment."""
    text = path.read_text(encoding="utf-8")
    tree, lines = ast.parse(text), text.split("\n")
    for node in tree.body:
        is_ours = isinstance(node, ast.ImportFrom) and (node.module or "").startswith((OURS, "__future__"))
        if is_ours or node is tree.body[0]:
            lines[node.lineno - 1 : node.end_lineno] = [""] * ((node.end_lineno or 0) - node.lineno + 1)
    code = "\n".join(lines).strip()
    return f"# {ast.get_docstring(tree)}\n\n{code}"


def write_blocks(folder: Path, family: str, model: str | None = None) -> None:
    """Write the three files that `ModularPipeline.from_pretrained` needs.

    Args:
        folder: where they go.
        family: one of `FAMILIES`.
        model: Hub id or folder of the weights that `load_components` is to load; None if there are none.

    Raises:
        ValueError: the model lacks a component that the family needs.
    """
    from sona_pipeline.pipelines.modular.blocks import SONABlocks
    from sona_pipeline.pipelines.modular.components import required_components

    name = blocks_name(family)
    kind = getattr(importlib.import_module(f"{OURS}families.{family}"), FAMILIES[family])
    SONABlocks(kind).init_pipeline(model).save_pretrained(str(folder), overwrite_modular_index=False)
    index = read_json(folder / PIPELINE) | {"_blocks_class_name": name}
    index = {key: value for key, value in index.items() if not isinstance(value, list) or value[2]["type_hint"][0]}
    has = {key for key, value in index.items() if isinstance(value, list) and value[2]["pretrained_model_name_or_path"]}
    if model and (missing := [part for part in required_components(kind) if part not in has]):
        raise ValueError(
            f"{model} has no {missing[0]}, which {FAMILIES[family]} needs: name a model of the family {family!r}, or"
            " another family"
        )
    write_text(folder / CODE, blocks_file(family))
    _write_json(folder / PIPELINE, index)
    auto_map = {"ModularPipelineBlocks": f"{Path(CODE).stem}.{name}"}
    _write_json(folder / BLOCKS, {"_class_name": name, "auto_map": auto_map})


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n")
