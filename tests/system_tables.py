"""The tables of `examples/benchmarks/systems.md`, with the settings as the code has them.

python tests/system_tables.py    # writes them again

`paper/systems.csv` says what a system is, and names in braces what is taken from the code: `m` is the module of the
system, `c` its class, `g` the settings of a generation. `paper/claims.csv` has what each system claims for itself.
"""

import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pandas as pd

from sona_pipeline import GenerationSettings
from sona_pipeline.common.registry import Registry
from sona_pipeline.detection.overdrawn import SHARE
from sona_pipeline.detection.scores import SCORES
from sona_pipeline.evaluation.posthoc import POST_HOC, gram
from sona_pipeline.generation.checks import FILTERS
from sona_pipeline.generation.ways import WAYS
from sona_pipeline.training.methods import METHODS

BENCHMARKS = Path(__file__).parents[1] / "examples" / "benchmarks"
PAGE = BENCHMARKS / "systems.md"
SYSTEMS, CLAIMS = (
    pd.read_csv(BENCHMARKS / "paper" / f"{name}.csv", keep_default_na=False) for name in ("systems", "claims")
)
KINDS = {
    "score": ("Scores, `sona evaluate --score`", [*SCORES, *POST_HOC]),
    "training": ("Training, `sona train --method`", METHODS),
    "way": ("Ways to make outliers, `sona generate --way`", WAYS),
    "filter": ("Filters of outliers, `sona generate --reject`", FILTERS),
}
"""Heading and names in the code of each kind of system."""
MANY = 8
"""Values of a search above which only their number is said."""


def with_tables(text: str) -> str:
    """The page with its tables as they should be."""
    for name, table in (("systems", systems_table), ("claims", claims_table)):
        marked = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        text = marked.sub(lambda found, table=table: f"{found[1]}\n{table()}\n\n{found[2]}", text)
    return text


def systems_table() -> str:
    """Every system by kind: what it is, its settings in the code, where they are from, and what differs."""
    lines = ["| system | what it is | our settings | from | what differs, and why |", "|---|---|---|---|---|"]
    for kind, rows in SYSTEMS.groupby("kind", sort=False):
        lines.append(f"| **{KINDS[kind][0]}** | | | | |")
        for row in rows.itertuples():
            title = ", ".join(filter(None, [row.system, f"`{row.name}`"]))
            lines.append(f"| {title} | {row.what} | {settings_of(row)} | {row.source} | {row.differs} |")
    return "\n".join(lines)


def claims_table() -> str:
    """What each system claims for itself."""
    rows = [f"| {row.system} | {row.claim} | {row.source} | {row.setup} |" for row in CLAIMS.itertuples()]
    return "\n".join(["| system | claim | source | its set-up |", "|---|---|---|---|", *rows])


def settings_of(row) -> str:
    """The settings of a system in words, with the values that the code has."""
    if row.kind == "filter":
        return ", ".join(f"`{bound.check}{bound.sign}{bound.limit:g}`" for bound in FILTERS[row.name])
    told = row.settings.format(**values_of(row.kind, row.name))
    parts = [*(parameters_of(row.name) if row.kind == "score" else ()), re.sub(r"(\d)%", r"\1 %", told)]
    return "; ".join(filter(None, parts))


def values_of(kind: str, name: str) -> Mapping[str, object]:
    """What may stand in braces."""
    shared = {"share": SHARE, "last_order": gram.ORDERS[-1], "g": GenerationSettings(("",))}
    if kind == "score":
        return shared | {"m": module_of(name)}
    registry: Registry = METHODS if kind == "training" else WAYS
    return shared | {"m": importlib.import_module(registry.place(name).split(":")[0]), "c": registry[name]}


def module_of(score: str) -> ModuleType | SimpleNamespace:
    """The module of a post-hoc score; nothing for those of the logits."""
    if score in SCORES:
        return SimpleNamespace()
    fit = POST_HOC[score].fit
    return importlib.import_module(getattr(fit, "func", fit).__module__)


def parameters_of(score: str) -> list[str]:
    """The parameters of a post-hoc score, and what a search tries."""
    if score in SCORES:
        return []
    told = [f"`{name}` {shown(value)}" for name, value in POST_HOC[score].defaults.items()]
    tried = [
        f"`{name}` {f'{len(values)} values' if len(values) > MANY else ', '.join(map(shown, values))}"
        for name, values in POST_HOC[score].grid.items()
    ]
    return [", ".join(told), f"searched: {'; '.join(tried)}" if tried else ""]


def shown(value: object) -> str:
    """A value as a reader writes it."""
    return f"{value:g}" if isinstance(value, float) else str(value).lower()


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
