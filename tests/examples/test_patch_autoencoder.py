"""The linear autoencoder: beside scikit-learn's principal components, and in a pipeline."""

import numpy as np
import pytest
import torch
from patch_autoencoder import PatchAutoencoder
from sklearn.decomposition import PCA


@pytest.fixture(scope="module")
def images():
    """Smooth random images `[40, 3, 8, 8]` in [-1, 1]."""
    noise = torch.randn(40, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.avg_pool2d(noise, 5, stride=1).mul(2).clamp(-1, 1)


def patches_of(images: torch.Tensor, side: int) -> np.ndarray:
    """Patches `[N, C x side x side]`, by slices."""
    step = range(0, images.shape[-1], side)
    parts = [images[:, :, y : y + side, x : x + side].flatten(1) for y in step for x in step]
    return torch.cat(parts).numpy()


def test_round_trips_are_those_of_principal_components(images):
    vae = PatchAutoencoder(latent_channels=5)
    vae.fit(images)
    latents = vae.encode(images).latent_dist.mode()
    assert latents.shape == (40, 5, 2, 2)
    patches = patches_of(images, 4)
    peer = PCA(5, whiten=True).fit(patches)
    expected = peer.inverse_transform(peer.transform(patches))
    np.testing.assert_allclose(patches_of(vae.decode(latents).sample.detach(), 4), expected, atol=1e-4)
    flat = latents.transpose(0, 1).flatten(1)
    assert torch.allclose(torch.cov(flat), torch.eye(5), atol=1e-3)
    assert torch.allclose(flat.mean(dim=1), torch.zeros(5), atol=1e-4)


def test_with_less_whitening_round_trips_stay_and_coarse_components_are_larger(images):
    vae, half = PatchAutoencoder(latent_channels=5), PatchAutoencoder(latent_channels=5)
    vae.fit(images)
    half.fit(images, whitening=0.5)
    latents = half.encode(images).latent_dist.mode()
    whole = vae.decode(vae.encode(images).latent_dist.mode()).sample
    assert torch.allclose(half.decode(latents).sample, whole, atol=1e-4)
    variances = PCA(5).fit(patches_of(images, 4)).explained_variance_
    expected = torch.from_numpy(np.sqrt(variances))
    assert torch.allclose(torch.cov(latents.transpose(0, 1).flatten(1)), torch.diag(expected), atol=1e-3)


def test_all_components_lose_nothing(images):
    vae = PatchAutoencoder(latent_channels=48)
    vae.fit(images)
    again = vae.decode(vae.encode(images).latent_dist.mode()).sample
    assert torch.allclose(again, images, atol=1e-3)


def test_samples_have_hardly_any_noise(images):
    vae = PatchAutoencoder()
    vae.fit(images)
    posterior = vae.encode(images).latent_dist
    assert (posterior.sample() - posterior.mode()).abs().max() < 1e-4


@pytest.mark.parametrize("count", [0, 49])
def test_more_components_than_values_are_refused(count):
    with pytest.raises(ValueError, match=f"`latent_channels` is {count}, but has to be from 1 to 48"):
        PatchAutoencoder(latent_channels=count)
