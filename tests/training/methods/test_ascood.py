import pytest
import torch
from steps import SETTINGS, exposure, network, step

from sona_pipeline.training.methods.ascood import ASCOOD
from sona_pipeline.training.methods.outlier_exposure import outlier_exposure


@pytest.mark.parametrize(("progress", "factor"), [(0.0, 300.0), (0.5, 165.0), (1.0, 30.0)])
def test_the_factor_falls_over_the_training(progress, factor):
    images = torch.rand(2, 3, 66, 66, generator=torch.Generator().manual_seed(1))
    shown = exposure(images, images[:0], classify=lambda pixels: pixels.flatten(1)[:, :3] ** 2, progress=progress)
    made, share = ASCOOD(network(), SETTINGS).expose(shown)
    moved = (made - images).flatten(1)
    assert moved[:, 0].tolist() == pytest.approx((factor * 2 * images[:, 0, 0, 0]).tolist(), rel=1e-4)
    assert moved[:, 1:].abs().max() == 0 and share.tolist() == [0, 0]


def test_its_loss_is_outlier_exposure():
    assert ASCOOD(network(), SETTINGS)(step()) == outlier_exposure(step().outlier_logits)


def test_pixels_of_small_images_are_shuffled():
    images = torch.rand(2, 3, 10, 10, generator=torch.Generator().manual_seed(1))
    shown = exposure(images, images[:0], classify=lambda pixels: pixels.flatten(1)[:, :3] ** 2)
    made, share = ASCOOD(network(), SETTINGS).expose(shown)
    moved = (made != images).any(dim=1).flatten(1).sum(dim=1)
    assert (moved <= 10).all() and moved.sum() > 4 and share.tolist() == [0, 0]
    for image, changed in zip(images, made):
        assert torch.equal(image.flatten(1).sum(0).sort().values, changed.flatten(1).sum(0).sort().values)
