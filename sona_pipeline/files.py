"""Files that appear whole or not at all, and what a job needs to be resumed."""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path

from PIL import Image


def settle_settings(path: Path, settings: dict) -> None:
    """Write the settings of a job, or check that an earlier run into the same folder had the very same.

    Raises:
        ValueError: they differ; the message says in what.
    """
    settings = json.loads(json.dumps(settings))
    if path.exists():
        earlier = json.loads(path.read_text(encoding="utf-8"))
        if changed := [key for key in sorted(settings | earlier) if settings.get(key) != earlier.get(key)]:
            what = ", ".join(f"{key} ({earlier.get(key)!r} then, {settings.get(key)!r} now)" for key in changed)
            raise ValueError(f"{path.parent} was made with other settings: {what}; choose another folder")
        return
    write_text(path, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    write_bytes(path, text.encode())


def save_image(image: Image.Image, path: Path) -> str:
    """Write a PNG whole or not at all; returns the SHA-256 of the file."""
    content = io.BytesIO()
    image.save(content, format="PNG")
    write_bytes(path, content.getvalue())
    return hashlib.sha256(content.getvalue()).hexdigest()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


class JsonLines:
    """A table of JSON lines that is only appended to; a line torn by a kill is dropped when it is read."""

    def __init__(self, path: Path):
        self.path = path
        self.rows: list[dict] = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                self.rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue

    def keep(self, file_names: set[str]) -> None:
        """Drop all rows but those of `file_names`."""
        self.rows = [row for row in self.rows if row["file_name"] in file_names]
        text = "".join(_json_line(row) for row in self.rows)
        if self.path.exists() and self.path.read_text(encoding="utf-8") != text:
            write_text(self.path, text)

    def append(self, rows: list[dict]) -> None:
        """Add rows and bring them to the disk."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(_json_line(row) for row in rows))
        self.rows += rows


def _json_line(row: dict) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
