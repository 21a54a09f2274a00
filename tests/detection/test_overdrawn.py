import torch

from sona_pipeline.detection.overdrawn import overdrawn, shuffled


def test_the_tenth_with_the_largest_gradients_is_moved_along_them():
    """Logits are quadratic forms of the pixels, so that their gradients are known: 2 a x."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, 3, 6, 6, generator=generator)
    factors = torch.randn(3, 3 * 6 * 6, generator=generator)
    labels, deviation = torch.tensor([2, 0, 1, 2]), torch.tensor([0.2, 0.25, 0.3]).view(1, 3, 1, 1)

    def classify(pixels):
        return pixels.flatten(1).square() @ factors.T

    made = overdrawn(images, labels, classify, deviation, 3.0)
    scale = deviation.expand(1, 3, 6, 6).flatten()
    for image, label, changed in zip(images, labels, made):
        slope = 2 * factors[label] * image.flatten() * scale  # by normalized pixels
        expected = image.flatten().clone()
        for place in slope.abs().argsort(descending=True)[:10]:  # of 108
            expected[place] += 3.0 * slope[place] * scale[place]
        assert torch.allclose(changed.flatten(), expected, atol=1e-5)
    logits, overdrawn_logits = classify(images).gather(1, labels[:, None]), classify(made).gather(1, labels[:, None])
    assert (overdrawn_logits > logits).all()  # the class is overdrawn


def test_the_tenth_of_the_pixels_with_the_highest_gradients_changes_places():
    generator = torch.Generator().manual_seed(0)
    images, factors = torch.rand(4, 3, 6, 6, generator=generator), torch.randn(3, 108, generator=generator)
    labels, deviation = torch.tensor([2, 0, 1, 2]), torch.tensor([0.2, 0.25, 0.3]).view(1, 3, 1, 1)
    order = torch.rand(4, 36, generator=generator)
    made = shuffled(images, labels, lambda pixels: pixels.flatten(1).square() @ factors.T, deviation, order)
    for image, label, changed, own in zip(images, labels, made, order):
        slope = 2 * factors[label].view(3, 6, 6) * image * deviation[0]
        places = slope.exp().sum(dim=0).flatten().argsort(descending=True)[:3]  # of 36
        expected = image.flatten(1).clone()
        for place, source in zip(places, places[own[:3].argsort()]):
            expected[:, place] = image.flatten(1)[:, source]
        assert torch.equal(changed.flatten(1), expected)
