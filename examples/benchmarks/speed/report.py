"""The results as tables, and the machine that they are from."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch

from sona_pipeline import __version__

PACKAGES = ("torch", "diffusers", "transformers", "accelerate")


def environment() -> dict:
    """Processor, threads, and versions."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {"sona-pipeline": __version__} | {name: version(name) for name in PACKAGES},
    }


def _processor() -> str:
    """The model that Linux tells, or what Python knows."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def tables(parts: dict[str, dict]) -> str:
    """All parts in Markdown."""
    return "\n\n".join(["# Speed", *(part_table(letter, part) for letter, part in parts.items())]) + "\n"


def part_table(letter: str, part: dict) -> str:
    """One part in Markdown."""
    machine = part["environment"]
    packages = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    lines = [
        f"## ({letter}) {part['title']}",
        "",
        f"Seed {part['seed']}, {part['rounds']} rounds after one to warm up, {part['seconds_of_run']:.0f} s in all.",
        f"{machine['processor']}, {machine['threads']} threads, {machine['cores']} cores; Python {machine['python']},"
        f" {packages}.",
    ]
    return "\n".join([*lines, *(line for one in part["comparisons"] for line in _comparison(one))])


def _comparison(one: dict) -> list[str]:
    counts = ", ".join(f"{name}: {count:,}" for name, count in one["counts"].items())
    lines = ["", f"{one['title']} ({counts})", "", f"| | seconds | {one['unit']} a second |", "|---|---|---|"]
    for name, row in one["seconds"].items():
        lines.append(f"| {name} | {_range(row)} | {row[one['unit'] + ' a second']:.4g} |")
    if one["ratios"]:
        lines += ["", "| ratio of times | median, and range over the rounds | goal |", "|---|---|---|"]
    lines += [f"| {row['of']} / {row['to']} | {_range(row)} | {_goal(row)} |" for row in one["ratios"]]
    return lines + [line for note in one["notes"] for line in ("", note)]


def _range(row: dict) -> str:
    return f"{row['median']:.3f} ({row['min']:.3f} to {row['max']:.3f})"


def _goal(row: dict) -> str:
    if "is_met" not in row:
        return ""
    wanted = f"at most {row['at_most']:.2f}" if "at_most" in row else f"at least {row['at_least']:.2f}"
    return f"{wanted}: {'met' if row['is_met'] else 'missed'}"


def rows_table(rows: list[dict]) -> str:
    """Rows of any columns in Markdown."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [columns, ["---"] * len(columns), *([_cell(row.get(column)) for column in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if rows else ""


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)
