from dataclasses import replace

import pytest

from sona_pipeline.data import sample
from sona_pipeline.data.image_set import ImageSet
from sona_pipeline.generation.checkpoint import load_pipeline
from sona_pipeline.generation.estimate import described, estimate
from sona_pipeline.generation.generate import generate_outliers, make_plan
from sona_pipeline.generation.plan import plan_outliers
from sona_pipeline.generation.settings import GenerationSettings, OutputSettings

SETTINGS = GenerationSettings(ood_labels=("bag", "sandal"), num_inference_steps=4)


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline("tiny", "cpu")


def test_estimate_counts_rows_and_bytes_and_writes_nothing(pipe, tmp_path):
    images = sample.id_images("train").take(range(10))
    plan = plan_outliers(images, SETTINGS)
    cost = estimate(plan, pipe, tmp_path / "not" / "there", 64)
    assert cost.images == 10
    assert cost.unet_rows == 3 * sum(item.stop_step for item in plan)
    assert 0 < cost.seconds < 60
    assert cost.rows_per_second == pytest.approx(cost.unet_rows / cost.seconds)
    assert cost.free_bytes > 0
    assert not list(tmp_path.iterdir())
    generate_outliers(images, pipe, tmp_path, SETTINGS)
    real = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert 0.5 < cost.bytes / real < 2
    without = estimate(plan, pipe, tmp_path, 64, OutputSettings(reconstructions=False))
    assert without.bytes < cost.bytes
    small = estimate(plan, pipe, tmp_path, 64, OutputSettings(save_size=8))
    assert small.bytes < cost.bytes


@pytest.mark.parametrize("steps", [1, 2])
def test_estimate_of_few_steps(pipe, tmp_path, steps):
    plan = plan_outliers(sample.id_images("train").take([0]), GenerationSettings(("bag",), num_inference_steps=steps))
    assert 0 < estimate(plan, pipe, tmp_path, 1).seconds < 60


def test_estimate_says_when_no_image_can_be_read(pipe, tmp_path):
    def opened(index):
        raise OSError("torn")

    plan = plan_outliers(ImageSet(("a", "b"), (0, 0), ("shirt",), opened), SETTINGS)
    with pytest.raises(ValueError, match="none of 2 images could be read; the first: torn"):
        estimate(plan, pipe, tmp_path, 64)


def test_a_part_without_batches_costs_nothing(pipe, tmp_path):
    """Of three images in batches of two there are two parts with something to do."""
    images, costs = sample.id_images("train").take(range(3)), []
    for number in (1, 2, 3):
        writing = OutputSettings(part=f"{number}/3", batch_size=2)
        plan = make_plan(images, pipe, SETTINGS, writing)
        costs.append(estimate(plan, pipe, tmp_path, 2, writing))
        assert f"Images:     {len(plan)} of " in described(plan, costs[-1], preset="fast", scheduler="DDIM")[0]
    assert sum(cost.images for cost in costs) == 3
    assert (costs[2].unet_rows, costs[2].seconds, costs[2].bytes) == (0, 0, 0) and costs[2].free_bytes > 0


def test_estimate_does_without_bounds(pipe, tmp_path):
    bounds = ("source_confidence>0.5", "contrast<0.5")
    plan = plan_outliers(sample.id_images("train").take(range(4)), replace(SETTINGS, reject=bounds))
    assert estimate(plan, pipe, tmp_path, 64).bytes > 0
