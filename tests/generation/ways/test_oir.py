import pytest
import torch

from sona_pipeline.generation.ways.oir import OIR, _scaled


@pytest.mark.parametrize(("steps", "depths"), [(50, list(range(5, 51, 5))), (4, [1, 2, 3, 4]), (1, [1])])
def test_ten_depths_of_any_schedule(steps, depths):
    assert OIR._depths(steps) == depths


def test_scores_are_scaled_over_the_depths_of_each_image():
    scores = torch.tensor([[1.0, 5.0], [3.0, 5.0], [2.0, 5.0]])
    assert _scaled(scores).tolist() == [[0, 0], [1, 0], [0.5, 0]]
