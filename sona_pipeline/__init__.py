"""SONA: semantic outliers from labelled images, and detectors trained on them."""

from pathlib import Path

from sona_pipeline.pipeline import SONAGuidance, SONAPipeline, SONAPipelineOutput, sona_guidance

__version__ = "0.1.0"
TINY_MODEL = Path(__file__).parent / "assets" / "tiny"
"""Folder of the embedded text-conditional latent diffusion model, in diffusers layout (Fashion-MNIST, 32 px, grey)."""

__all__ = ["TINY_MODEL", "SONAGuidance", "SONAPipeline", "SONAPipelineOutput", "sona_guidance"]
