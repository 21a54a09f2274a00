import torch

from sona_pipeline.generation.ways.cutpaste import cut_and_pasted


def test_a_rectangle_of_the_image_is_put_elsewhere():
    images = torch.rand(40, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    areas = []
    for number, image in enumerate(images):
        changed = cut_and_pasted(image, torch.Generator().manual_seed(number))
        ys, xs = ((changed - image).abs().amax(dim=0) > 0).nonzero().T
        y, x, high, wide = ys.min(), xs.min(), ys.max() - ys.min() + 1, xs.max() - xs.min() + 1
        areas.append(float(high * wide) / 32**2)
        patch = changed[:, y : y + high, x : x + wide]
        places = image.unfold(1, int(high), 1).unfold(2, int(wide), 1)
        assert (places - patch[:, None, None]).abs().amax(dim=(0, 3, 4)).min() == 0
    assert 0.015 < min(areas) < 0.05 and 0.1 < max(areas) < 0.2
