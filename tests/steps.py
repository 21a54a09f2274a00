"""A network of five features and three classes, and what a method sees in a step of its training."""

import torch
from torch import nn

from sona_pipeline.detection.networks import Network
from sona_pipeline.training.methods.base import Exposure, Step
from sona_pipeline.training.settings import TrainingSettings

SETTINGS = TrainingSettings()


def network(width: int = 5, heads: int = 1) -> Network:
    """Its features are its input."""
    made = Network(nn.Identity(), nn.Linear(width, 3))
    if heads == 2:
        made.second_head = nn.Linear(width, 3)
    return made


def step(**changes) -> Step:
    """Four ID images of three classes and two outliers, of images 1 and 3."""
    generator = torch.Generator().manual_seed(0)
    parts = {
        "labels": torch.tensor([0, 1, 2, 1]),
        "logits": torch.randn(4, 3, generator=generator),
        "features": torch.randn(4, 5, generator=generator),
        "outlier_logits": torch.randn(2, 3, generator=generator),
        "outlier_features": torch.randn(2, 5, generator=generator),
        "sources": torch.tensor([1, 3]),
        "id_share": torch.zeros(2),
        "progress": 0.5,
        "places": torch.tensor([7, 2, 0, 5]),
        "outlier_places": torch.tensor([2, 5]),
    }
    return Step(**parts | changes)


def exposure(images: torch.Tensor, outliers: torch.Tensor, **changes) -> Exposure:
    """Outliers of images of class 0, before they are looked at."""
    parts = {
        "images": images,
        "labels": torch.zeros(len(images), dtype=torch.long),
        "outliers": outliers,
        "strengths": torch.ones(len(outliers)),
        "classify": lambda pixels: pixels.flatten(1)[:, :3],
        "deviation": torch.ones(1, 3, 1, 1),
        "progress": 0.0,
    }
    return Exposure(**parts | changes)
