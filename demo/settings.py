"""Settings of the page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Interval


@dataclass(frozen=True)
class PageSettings:
    """What the page shows, and where it is served."""

    model: str = "tiny"
    """Checkpoint of a diffusion model: a Hub id, a folder, or a .safetensors file; 'tiny' (grey, Fashion-MNIST) and
    'cifar' (colour) are embedded."""
    detector: str | None = None
    """Detector that the page asks: a folder or a Hub id ('tiny' brings its own)."""
    device: str | None = None
    """'cuda', 'mps', 'cpu' (the fastest there is by default)."""
    host: str | None = "127.0.0.1"
    """Address to listen at; '0.0.0.0' for all."""
    port: Annotated[int, Interval(ge=1, le=65535)] | None = None
    """Port (the first free one from 7860 on by default)."""
