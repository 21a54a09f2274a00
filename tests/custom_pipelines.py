"""The files that diffusers loads as custom pipelines: a family with all that it needs of the package, in one file each.

python tests/custom_pipelines.py    # writes them again into sona_pipeline/custom_pipelines
"""

import ast
import re
import subprocess
import sys
from pathlib import Path

from sona_pipeline.common.assets import PACKAGE
from sona_pipeline.hub.blocks import OURS, with_imported

FAMILIES, MADE = PACKAGE / "pipelines" / "families", PACKAGE / "custom_pipelines"
NOTE = "#\n# Made from sona_pipeline/pipelines by tests/custom_pipelines.py: changes belong there.\n"
LOGGER = "logger = logging.get_logger(__name__)\n"


def family_names() -> list[str]:
    """Names of the families' files."""
    return sorted(path.stem for path in FAMILIES.glob("*.py") if path.stem != "__init__")


def standalone(family: str) -> str:
    """The file of a family with what it imports from the package in its place, in the order of imports."""
    modules = with_imported(FAMILIES / f"{family}.py")
    plain: set[str] = set()
    names: dict[str, set[str]] = {}
    bodies, document = [], ""
    for path in modules:
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        document, first = ast.get_docstring(tree, clean=False) or "", 0
        for node in tree.body:
            if isinstance(node, ast.Import):
                plain |= {ast.unparse(node)}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.module.startswith(OURS):
                names.setdefault(node.module, set()).update(
                    name.name + (f" as {name.asname}" if name.asname else "") for name in node.names
                )
            if isinstance(node, (ast.Import, ast.ImportFrom)) or node is tree.body[0]:
                first = node.end_lineno or 0
        bodies.append("\n".join(text.split("\n")[first:]).replace(LOGGER, "").strip())
    names.pop("__future__")
    imported = [*sorted(plain), *(f"from {module} import {', '.join(sorted(some))}" for module, some in names.items())]
    code = "\n\n\n".join(body for body in bodies if body)
    _check_names(code)
    licence = Path(__file__).with_name("custom_pipelines_licence.txt").read_text(encoding="utf-8")
    head = f'{licence}{NOTE}"""{document}"""\n'  # without __future__: `from_pipe` looks for types in annotations
    return _formatted("\n".join([head, *imported, "", LOGGER, "", code, ""]))


def _check_names(code: str) -> None:
    """Raise ValueError for a name that two modules give to different things."""
    seen: set[str] = set()
    for node in ast.parse(code).body:
        name = getattr(node, "name", None)
        if name in seen:
            raise ValueError(f"two modules define {name!r}, which one file cannot hold: rename one")
        seen |= {name} if name else set()


def _formatted(code: str) -> str:
    """The code with sorted imports and without those that are not used, in the project's style."""
    for command in (["check", "--fix-only", "--select", "I,F401", "--quiet"], ["format"]):
        asked = [sys.executable, "-m", "ruff", *command, "--stdin-filename", str(MADE / "made.py"), "-"]
        code = subprocess.run(asked, input=code, capture_output=True, text=True, check=True).stdout
    return re.sub(r"\n{4,}", "\n\n\n", code)


if __name__ == "__main__":
    MADE.mkdir(exist_ok=True)
    for one in family_names():
        (MADE / f"{one}.py").write_text(standalone(one), encoding="utf-8")
        print(f"{MADE.name}/{one}.py")
