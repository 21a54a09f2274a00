import numpy as np
import pytest

from sona_pipeline import sample
from sona_pipeline.generation.checkpoint import load_pipeline
from sona_pipeline.generation.make import OutlierMaker
from sona_pipeline.generation.plan import plan_outliers
from sona_pipeline.generation.settings import GenerationSettings


@pytest.mark.parametrize("model", ["tiny", "cifar"])
def test_outside_the_mask_the_source_stays(model):
    """Also where an encoder draws its latents, and with latents of 16 channels."""
    pipe = load_pipeline(model, "cpu", dtype="float32")
    settings = GenerationSettings(("bag", "sandal"), way="diffedit", num_inference_steps=8)
    plan = plan_outliers(sample.id_images("train").take([0, 400, 800]), settings)
    maker = OutlierMaker(pipe, plan)
    work = maker.denoise(maker.encode(maker.read(plan.batch(np.arange(3)))))
    changes = (work.outlier_latents - work.source_latents).flatten(1).abs()
    assert changes.median(dim=1).values.max() < 0.05 and changes.amax() > 1
