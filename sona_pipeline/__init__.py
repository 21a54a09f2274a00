"""SONA: semantic outliers from labelled images, and detectors trained on them."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sona_pipeline.checkpoint import load_pipeline
    from sona_pipeline.data import ImageSet, hold_out, open_images
    from sona_pipeline.detector import Detection, Detector, load_detector
    from sona_pipeline.evaluate import evaluate_detectors
    from sona_pipeline.generate import OutputSettings, generate_outliers
    from sona_pipeline.hub import (
        push,
        write_detector_repository,
        write_outlier_repository,
        write_pipeline_repository,
        write_space,
    )
    from sona_pipeline.outlier_set import OutlierPairs, open_outlier_set
    from sona_pipeline.pipeline import SONAGuidance, SONAPipeline, SONAPipelineOutput, sona_guidance
    from sona_pipeline.plan import GenerationSettings
    from sona_pipeline.score_table import TestSets, results_of, score_images
    from sona_pipeline.train import train_detector
    from sona_pipeline.training_settings import RECIPES, TrainingSettings

__version__ = "0.1.0"
TINY_MODEL = Path(__file__).parent / "assets" / "tiny"
"""Folder of the embedded text-conditional latent diffusion model, in diffusers layout (Fashion-MNIST, 32 px, grey)."""
TINY_DETECTOR = TINY_MODEL.with_name("detector")
"""Folder of the embedded detector of six classes of Fashion-MNIST, trained with outliers of that model."""

_HOMES = {
    "Detection": "detector",
    "Detector": "detector",
    "GenerationSettings": "plan",
    "ImageSet": "data",
    "OutlierPairs": "outlier_set",
    "OutputSettings": "generate",
    "RECIPES": "training_settings",
    "SONAGuidance": "pipeline",
    "SONAPipeline": "pipeline",
    "SONAPipelineOutput": "pipeline",
    "TestSets": "score_table",
    "TrainingSettings": "training_settings",
    "evaluate_detectors": "evaluate",
    "generate_outliers": "generate",
    "hold_out": "data",
    "load_detector": "detector",
    "load_pipeline": "checkpoint",
    "open_images": "data",
    "open_outlier_set": "outlier_set",
    "push": "hub",
    "results_of": "score_table",
    "score_images": "score_table",
    "sona_guidance": "pipeline",
    "train_detector": "train",
    "write_detector_repository": "hub",
    "write_outlier_repository": "hub",
    "write_pipeline_repository": "hub",
    "write_space": "hub",
}
__all__ = [
    "RECIPES",
    "TINY_DETECTOR",
    "TINY_MODEL",
    "Detection",
    "Detector",
    "GenerationSettings",
    "ImageSet",
    "OutlierPairs",
    "OutputSettings",
    "SONAGuidance",
    "SONAPipeline",
    "SONAPipelineOutput",
    "TestSets",
    "TrainingSettings",
    "evaluate_detectors",
    "generate_outliers",
    "hold_out",
    "load_detector",
    "load_pipeline",
    "open_images",
    "open_outlier_set",
    "push",
    "results_of",
    "score_images",
    "sona_guidance",
    "train_detector",
    "write_detector_repository",
    "write_outlier_repository",
    "write_pipeline_repository",
    "write_space",
]


def __getattr__(name: str):
    """Import an export when it is first used, so that `sona --help` need not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
