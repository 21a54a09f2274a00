import io

import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image
from shapes import beside, damaged, shapes
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import pil_to_tensor

from sona_pipeline.data.codecs import KeptForm
from sona_pipeline.data.image_set import ImageSet
from sona_pipeline.data.outlier_set import OutlierPairs
from sona_pipeline.training import items as training_data
from sona_pipeline.training.items import EpochOrder, Labelled, Pixels, TrainingItems, collate, mixed_seed
from sona_pipeline.training.settings import AUGMENTATIONS


@pytest.fixture(scope="module")
def images():
    return shapes(["horizontal", "vertical"], 12, seed=0)


@pytest.fixture(scope="module")
def outliers():
    return shapes(["diagonal"], 12, seed=1, labelled=False)


def plain(images) -> Pixels:
    return Pixels(images, pil_to_tensor)


def test_items_keep_image_label_outlier_and_round_trip_together(images, outliers):
    rounds = shapes(["horizontal", "vertical"], 12, seed=2)
    strengths = tuple(k / 12 for k in range(1, 13))
    items = TrainingItems(images, OutlierPairs(images, outliers, rounds, strengths), plain, plain)
    for i in range(12):
        item = items[i]
        for name, source in (("image", images), ("outlier", outliers), ("reconstruction", rounds)):
            assert torch.equal(item[name], pil_to_tensor(source.image(i)))
        assert (item["label"], item["strength"]) == (images.labels[i], pytest.approx(strengths[i]))


@pytest.mark.parametrize("paired", [True, False])
def test_outliers_alone_undergo_what_is_done_to_outliers(images, outliers, paired):
    rounds = shapes(["horizontal", "vertical"], 12, seed=2)
    given = OutlierPairs(images, outliers, rounds, (1.0,) * 12) if paired else outliers.take([3])
    items = TrainingItems(images, given, plain, lambda some: Pixels(some, lambda one: 255 - pil_to_tensor(one)))
    item = items[3]
    assert torch.equal(item["outlier"], 255 - pil_to_tensor(outliers.image(3)))
    assert torch.equal(item["image"], pil_to_tensor(images.image(3)))
    if paired:
        assert torch.equal(item["reconstruction"], pil_to_tensor(rounds.image(3)))


def test_of_several_outliers_of_an_image_one_is_drawn_each_time(images, outliers):
    others = shapes(["diagonal"], 12, seed=5, labelled=False)
    joined = ImageSet(outliers.keys * 2, (), (), lambda i: (outliers, others)[i // 12].image(i % 12))
    both = OutlierPairs(images, joined, None, (1.0,) * 12 + (0.1,) * 12)
    items = TrainingItems(images, both, plain, plain)
    torch.manual_seed(0)
    for i in range(12):
        known = [pil_to_tensor(one.image(i)) for one in (outliers, others)]
        found = [items[i] for _ in range(30)]
        drawn = [[torch.equal(item["outlier"], one) for one in known].index(True) for item in found]
        assert 5 < sum(drawn) < 25
        assert [item["strength"] == 1 for item in found] == [not which for which in drawn]


def test_id_images_undergo_what_their_outliers_have_undergone(images, outliers):
    """Scaled up for the model, down to be kept, and through the codec; outliers and round trips are as they were."""
    rounds, form = shapes(["horizontal", "vertical"], 12, seed=2), KeptForm(48, 12, "jpeg", 50)
    items = TrainingItems(images, OutlierPairs(images, outliers, rounds, (1.0,) * 12, form), plain, plain)
    for i in range(12):
        item, image = items[i], images.image(i).convert("RGB")
        for side in (48, 12):
            image = image.resize((side, side), Image.Resampling.LANCZOS)
        stored = io.BytesIO()
        image.save(stored, "JPEG", quality=50)
        assert torch.equal(item["image"], pil_to_tensor(Image.open(stored)))
        assert torch.equal(item["outlier"], pil_to_tensor(outliers.image(i)))
        assert torch.equal(item["reconstruction"], pil_to_tensor(rounds.image(i)))


def test_outliers_without_pairs_are_drawn_anew(images, outliers):
    few = outliers.take(range(3))
    items = TrainingItems(images, few, plain, plain)
    known = [pil_to_tensor(few.image(k)) for k in range(3)]
    torch.manual_seed(0)
    drawn = [[torch.equal(item["outlier"], one) for one in known].index(True) for item in (items[0] for _ in range(60))]
    assert min(drawn.count(k) for k in range(3)) > 8 and items[0]["strength"] == 1


def test_drawing_from_a_large_set_takes_no_longer_than_from_a_small_one(images, outliers, monkeypatch):
    monkeypatch.setattr(training_data, "SHUFFLED", 2)
    monkeypatch.setattr(torch, "randperm", None)
    few = damaged(outliers.take(range(4)), 1)
    items = TrainingItems(images, few, plain, plain)
    known = {k: pil_to_tensor(few.image(k)) for k in (0, 2, 3)}
    torch.manual_seed(0)
    found = [items[0] for _ in range(90)]
    drawn = [next(k for k, one in known.items() if torch.equal(item["outlier"], one)) for item in found]
    assert min(drawn.count(k) for k in known) > 15
    assert {reject["key"] for item in found for reject in item["rejects"]} == {"1-1"}
    torch.manual_seed(0)
    assert all(torch.equal(items[0]["outlier"], item["outlier"]) for item in found)
    with pytest.raises(ValueError, match="all of 100 outliers or fewer"):
        TrainingItems(images, damaged(few, 0, 2, 3), plain, plain)[0]


def test_unreadable_items_give_way_to_the_next_and_are_named(images, outliers):
    items = TrainingItems(damaged(images, 4, 11), beside(images, damaged(outliers, 5)), plain, plain)
    found = items[4]
    assert torch.equal(found["image"], pil_to_tensor(images.image(6)))
    assert [reject["key"] for reject in found["rejects"]] == ["0-4", "0-5"]
    assert torch.equal(items[11]["image"], pil_to_tensor(images.image(0)))  # after the last comes the first
    batch = collate([items[3], items[4], items[11]])
    assert [reject["key"] for reject in batch["rejects"]] == ["0-4", "0-5", "0-11"]
    assert batch["image"].shape == (3, 1, 16, 16) and batch["label"].tolist() == [1, 0, 0]


def test_errors_of_the_disk_are_not_taken_for_bad_images(images):
    def image(index: int):
        raise OSError(5, "Input/output error")

    broken = type(images)(images.keys, images.labels, images.classes, image)
    with pytest.raises(OSError, match="Input/output error"):
        TrainingItems(broken, None, plain, plain)[0]
    with pytest.raises(OSError, match="Input/output error"):
        Labelled(broken, pil_to_tensor)[0]


def test_images_are_decoded_once_while_there_is_room(images, monkeypatch):
    reads = []

    def read(image):
        reads.append(image)
        return pil_to_tensor(image)

    monkeypatch.setattr(training_data, "CACHE_BYTES", 3 * 16 * 16)
    pixels = Pixels(images, read)
    for _ in range(2):
        for i in range(5):
            assert torch.equal(pixels[i], pil_to_tensor(images.image(i)))
    assert len(reads) == 3 + 2 * 2


def test_augmentation_is_drawn_anew_and_keeps_the_size(images):
    for name, steps in AUGMENTATIONS.items():
        augment = v2.Compose([*steps(16), v2.Identity()])
        pixels = Pixels(images, pil_to_tensor, augment)
        torch.manual_seed(0)
        seen = [pixels[0] for _ in range(8)]
        assert {one.shape for one in seen} == {(1, 16, 16)}
        assert all(torch.equal(one, seen[0]) for one in seen) == (name == "none")


@given(st.integers(1, 200), st.integers(-(2**70), 2**70), st.integers(0, 500))
def test_order_is_a_permutation_that_follows_from_seed_and_epoch(count, seed, epoch):
    order, same = EpochOrder(count, seed), EpochOrder(count, seed)
    order.epoch = same.epoch = epoch
    assert sorted(order) == list(range(count)) == sorted(order)
    assert list(order) == list(same)


def test_seeds_and_epochs_give_different_orders():
    orders = set()
    for seed in range(5):
        for epoch in range(5):
            order = EpochOrder(50, seed)
            order.epoch = epoch
            orders.add(tuple(order))
    assert len(orders) == 25
    assert len({mixed_seed(a, b) for a in range(30) for b in range(30)}) == 900
