"""A family's blocks for modular diffusers: one file of code, and what leads from it to weights."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sona_pipeline.common.assets import PACKAGE
from sona_pipeline.common.files import read_json, write_text
from sona_pipeline.pipelines.core import SONAMixin
from sona_pipeline.pipelines.modular.blocks import SONABlocks

CODE, BLOCKS, PIPELINE = "block.py", "modular_config.json", "modular_model_index.json"
"""Files that diffusers looks for: the code, what names its class, and what its components are."""
OURS = "sona_pipeline.pipelines."


def blocks_name(family: type[SONAMixin]) -> str:
    """Name of the class of a family's blocks."""
    return f"{family.__name__}Blocks"


def blocks_file(family: type[SONAMixin]) -> str:
    """The file of a family's blocks: that of its pipeline, then the blocks, then the two put together."""
    pipeline = family.standalone_file().read_text(encoding="utf-8")
    last = PACKAGE / "pipelines" / "modular" / "blocks.py"
    bodies = [_body(path) for path in with_imported(last) if path.parent == last.parent]
    own = f'''class {blocks_name(family)}(SONABlocks, SequentialPipelineBlocks):
    """The blocks of `{family.__name__}`."""

    def __init__(self):
        super().__init__({family.__name__})
'''
    return "\n\n\n".join([pipeline.rstrip(), *bodies, own])


def with_imported(path: Path, found: Sequence[Path] = ()) -> list[Path]:
    """A module of `pipelines` after those that it imports, each once, and after those that were found before."""
    modules = list(found)
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(OURS):
            other = PACKAGE.parent / f"{(node.module or '').replace('.', '/')}.py"
            if other not in modules:
                modules = with_imported(other, modules)
    return [*modules, path]


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


def write_blocks(folder: Path, family: type[SONAMixin], model: str | None = None) -> None:
    """Write the three files that `ModularPipeline.from_pretrained` needs.

    Args:
        folder: where they go.
        family: pipeline that the blocks work through.
        model: Hub id of the weights of the family that `load_components` is to load; None if there are none.
    """
    name = blocks_name(family)
    SONABlocks(family).init_pipeline(model).save_pretrained(str(folder), overwrite_modular_index=False)
    index = read_json(folder / PIPELINE) | {"_blocks_class_name": name}
    index = {key: value for key, value in index.items() if not isinstance(value, list) or value[2]["type_hint"][0]}
    _write_json(folder / PIPELINE, index)
    auto_map = {"ModularPipelineBlocks": f"{Path(CODE).stem}.{name}"}
    _write_json(folder / BLOCKS, {"_class_name": name, "auto_map": auto_map})
    write_text(folder / CODE, blocks_file(family))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n")
