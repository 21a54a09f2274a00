"""What several tests of generation start from."""

import pytest

from sona_pipeline.generation.checkpoint import load_pipeline


@pytest.fixture(scope="module")
def pipe():
    """The embedded model of grey images, with DDIM."""
    loaded = load_pipeline("tiny", "cpu", dtype="float32", scheduler="ddim")
    loaded.set_progress_bar_config(disable=True)
    return loaded
