"""SONA: semantic outliers from labelled images, and detectors trained on them."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sona_pipeline.detector import Detection, Detector
    from sona_pipeline.pipeline import SONAGuidance, SONAPipeline, SONAPipelineOutput, sona_guidance

__version__ = "0.1.0"
TINY_MODEL = Path(__file__).parent / "assets" / "tiny"
"""Folder of the embedded text-conditional latent diffusion model, in diffusers layout (Fashion-MNIST, 32 px, grey)."""

_HOMES = {
    "Detection": "detector",
    "Detector": "detector",
    "SONAGuidance": "pipeline",
    "SONAPipeline": "pipeline",
    "SONAPipelineOutput": "pipeline",
    "sona_guidance": "pipeline",
}
__all__ = ["TINY_MODEL", "Detection", "Detector", "SONAGuidance", "SONAPipeline", "SONAPipelineOutput", "sona_guidance"]


def __getattr__(name: str):
    """Import an export when it is first used, so that `sona --help` need not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
