"""Where the files that come with the package lie."""

from pathlib import Path

PACKAGE = Path(__file__).parent.parent
CUSTOM_PIPELINE = PACKAGE / "custom_pipelines" / "stable_diffusion.py"
"""What diffusers loads as a custom pipeline for Stable Diffusion 1.x and 2.x."""
EMBEDDED_MODELS = {name: PACKAGE / "assets" / name for name in ("tiny", "cifar")}
"""Folders of the embedded text-conditional latent diffusion models of 32 px, in diffusers' layout: "tiny" of
Fashion-MNIST, in grey, and "cifar" of CIFAR-10 and half of CIFAR-100, in colour."""
TINY_MODEL = EMBEDDED_MODELS["tiny"]
MODEL_LABELS = PACKAGE / "assets" / "labels"
"""Folder with a text file for each embedded model: the labels that it knows."""
TINY_DETECTOR = PACKAGE / "assets" / "detector"
"""Folder of the embedded detector of six classes of Fashion-MNIST, trained with outliers of that model."""
SAMPLE = PACKAGE / "assets" / "sample"
"""Folder of the bundled sample: parquet files of Fashion-MNIST images."""
