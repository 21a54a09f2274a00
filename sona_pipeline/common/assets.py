"""Where the files that come with the package lie."""

from pathlib import Path

PACKAGE = Path(__file__).parent.parent
TINY_MODEL = PACKAGE / "assets" / "tiny"
"""Folder of the embedded text-conditional latent diffusion model, in diffusers layout (Fashion-MNIST, 32 px, grey)."""
TINY_DETECTOR = PACKAGE / "assets" / "detector"
"""Folder of the embedded detector of six classes of Fashion-MNIST, trained with outliers of that model."""
SAMPLE = PACKAGE / "assets" / "sample"
"""Folder of the bundled sample: parquet files of Fashion-MNIST images."""
