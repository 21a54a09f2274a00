"""Settings of asking a detector about image files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Ge

from sona_pipeline.common.settings import Argument


@dataclass(frozen=True)
class AskSettings:
    """Which images a detector is asked about, and how it answers."""

    images: Annotated[tuple[Path, ...], Argument()]
    """Image files, or folders of images."""
    detector: str
    """Folder of the detector, or its id on the Hub."""
    json: bool = False
    """Print a JSON object a line instead of a table."""
    cam: Path | None = None
    """Folder for Grad-CAM pictures of what the score looks at."""
    batch_size: Annotated[int, Ge(1)] = 64
    """Images at once."""
    device: str | None = None
    """'cpu', 'cuda', ... (an accelerator if there is one)."""
