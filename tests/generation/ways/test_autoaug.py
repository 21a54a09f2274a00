import numpy as np
import pytest
import torch

from sona_pipeline.generation.ways.autoaug import TRANSFORMS, cutout, cutperm, mixup, probabilities, rotation


@pytest.fixture
def image():
    return torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))


def of_seed(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_farthest_kind_is_the_likeliest():
    generator = np.random.default_rng(0)
    known = generator.normal(size=(60, 5))
    near, far = generator.normal(size=(60, 5)), generator.normal(size=(60, 5)) + 40
    shares = probabilities([known, near, far])
    assert shares[1] > 0.9 and sum(shares) == pytest.approx(1)
    assert probabilities([known, far, near])[0] == pytest.approx(shares[1], abs=0.05)


def test_transforms_by_hand(image):
    other = torch.zeros(3, 8, 8)
    assert torch.equal(mixup(image, other, of_seed(0)), image / 2)
    turned = {int(k): image.rot90(k, (1, 2)) for k in (1, 2, 3)}
    found = [rotation(image, other, of_seed(seed)) for seed in range(20)]
    assert all(any(torch.equal(one, turn) for turn in turned.values()) for one in found)
    assert all(any(torch.equal(one, turn) for one in found) for turn in turned.values())
    for seed in range(5):
        changed = cutperm(image, other, of_seed(seed))
        assert not torch.equal(changed, image)
        assert torch.equal(changed.flatten().sort().values, image.flatten().sort().values)
        hidden = cutout(image, other, of_seed(seed)) != image
        assert hidden.sum() == 3 * 16  # half of the side


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_follows_from_its_generator_alone(name, image):
    other = torch.rand(3, 8, 8, generator=of_seed(1))
    before, kept = image.clone(), torch.random.get_rng_state()
    first, again = (TRANSFORMS[name](image, other, of_seed(5)) for _ in range(2))
    assert torch.equal(first, again) and torch.equal(image, before)
    assert torch.equal(torch.random.get_rng_state(), kept)
    assert first.shape == image.shape and not torch.equal(first, image)
