"""Crops of pictures of any shape: all of a picture is seen, and its shape does not change the size of things in it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from torchvision.transforms import v2

from sona_pipeline.data.imaging import fit
from sona_pipeline.detection.detector import Detector
from sona_pipeline.training import augmentation
from sona_pipeline.training.augmentation import ResizedCrop, Shuffled, strong

SIDES = st.integers(8, 80)


def boxes(height: int, width: int, count: int) -> list[tuple[int, int, int, int]]:
    """Top, left, height and width of the parts that are drawn of a picture, from seed 0 on."""
    found = []

    def note(image, *box, **options):
        found.append(box[:4])
        return image

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augmentation.functional, "resized_crop", note)
        for seed in range(count):
            torch.manual_seed(seed)
            ResizedCrop(8)(torch.zeros(3, height, width))
    return found


@settings(max_examples=20, deadline=None)
@given(SIDES, SIDES)
def test_every_part_of_a_picture_is_seen(height, width):
    seen = torch.zeros(height, width, dtype=torch.bool)
    for top, left, rows, columns in boxes(height, width, 300):
        assert 0 <= top <= height - rows and 0 <= left <= width - columns
        seen[top : top + rows, left : left + columns] = True
    assert seen.float().mean() > 0.97  # a corner is the rarest
    assert seen.any(dim=0).all() and seen.any(dim=1).all()


@settings(max_examples=20, deadline=None)
@given(SIDES, SIDES)
def test_things_are_of_one_size_in_a_picture_and_in_its_middle_square(height, width):
    side = min(height, width)
    assert [box[2:] for box in boxes(height, width, 50)] == [box[2:] for box in boxes(side, side, 50)]


@settings(max_examples=20, deadline=None)
@given(SIDES, st.integers(0, 2**31))
def test_squares_are_cropped_as_torchvision_crops_them(side, seed):
    image = torch.randint(256, (3, side, side), dtype=torch.uint8)
    torch.manual_seed(seed)
    ours = ResizedCrop(16)(image)
    torch.manual_seed(seed)
    assert torch.equal(ours, v2.RandomResizedCrop(16, antialias=True)(image))


@given(st.integers(1, 90), st.integers(1, 90))
def test_whole_pictures_have_their_short_side_scaled_and_squares_are_those_of_tests(width, height):
    detector = Detector(["a", "b"], image_size=8, crop_pct=0.5)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))
    whole = detector.whole(picture)
    short, long = sorted(whole.shape[1:])
    assert short == 16 and long == round(16 * min(16, max(width, height) / min(width, height)))
    assert (whole.shape[2] >= whole.shape[1]) == (width >= height) or short == long
    square = picture.crop((0, 0, min(width, height), min(width, height)))
    assert torch.equal(detector.whole(square), torch.from_numpy(np.array(fit(square, 16))).permute(2, 0, 1))
    tall = detector.whole(picture.transpose(Image.Transpose.TRANSPOSE))
    assert tall.shape == (3, whole.shape[2], whole.shape[1])


@settings(max_examples=20, deadline=None)
@given(SIDES, SIDES, st.integers(0, 2**31))
def test_shuffled_parts_are_those_of_the_image_in_another_order(height, width, seed):
    image = torch.arange(height * width).reshape(1, height, width)
    torch.manual_seed(seed)
    found = Shuffled()(image)
    assert sorted(found.flatten().tolist()) == list(range(height * width))
    torch.manual_seed(seed)
    count = 2 if torch.rand(()) < 0.5 else 4
    order, (high, wide) = torch.randperm(count**2).tolist(), (height // count, width // count)
    for place, origin in enumerate(order):
        (row, column), (old_row, old_column) = divmod(place, count), divmod(origin, count)
        part = found[0, row * high : (row + 1) * high, column * wide : (column + 1) * wide]
        old = image[0, old_row * high : (old_row + 1) * high, old_column * wide : (old_column + 1) * wide]
        assert torch.equal(part, old)


@pytest.mark.parametrize("size", [8, 30, 32, 224])
def test_strong_changes_most_of_the_outliers_in_many_ways(size):
    change = v2.Compose(strong(size))
    image = v2.functional.resize(torch.randint(256, (3, 4, 4), dtype=torch.uint8), [size, size])
    torch.manual_seed(0)
    found = [change(image) for _ in range(200)]
    assert {(tuple(one.shape), one.dtype) for one in found} == {((3, size, size), torch.uint8)}
    unchanged = sum(torch.equal(one, image) for one in found)
    assert 35 < unchanged < 95  # a few of TrivialAugment's changes are none
    assert any(torch.equal(one, 255 - image) for one in found)
    assert any(torch.equal(one[0], one[1]) and torch.equal(one[1], one[2]) for one in found)
    assert any((one % 64 == 0).all() for one in found)
