"""CutPaste: a patch of the image put elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sona_pipeline.generation.ways.base import Way, latents_of, pixels_of

if TYPE_CHECKING:
    from sona_pipeline.generation.make import OutlierMaker, Work

AREA, ASPECT = (0.02, 0.15), (0.3, 1 / 0.3)
"""Of a patch: its share of the image, and how many times it is as wide as high."""


class CutPaste(Way):
    """CutPaste (Li et al. 2021): a patch of 2 to 15 % of the image, 0.3 to 3.3 times as wide as high, put elsewhere."""

    uses_stop_step = uses_label = False

    @classmethod
    def rows(cls, stop_step: int, steps: int) -> int:
        """The UNet has no part in it."""
        return 0

    def __call__(self, maker: OutlierMaker, work: Work) -> torch.Tensor:
        """Image by image, and back into latents."""
        pairs = zip(pixels_of(maker, work), work.generators)
        return latents_of(maker, torch.stack([cut_and_pasted(image, generator) for image, generator in pairs]))


def cut_and_pasted(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """An image `[C, S, S]` with a patch of it somewhere else as well."""
    area, shape, *places = torch.rand(6, generator=generator).tolist()
    side = image.shape[-1]
    pixels = side**2 * (AREA[0] + (AREA[1] - AREA[0]) * area)
    aspect = ASPECT[0] * (ASPECT[1] / ASPECT[0]) ** shape
    high, wide = (min(side, max(1, round(pixels**0.5 * f))) for f in (aspect**-0.5, aspect**0.5))
    y, new_y = (int(place * (side - high + 1)) for place in places[:2])
    x, new_x = (int(place * (side - wide + 1)) for place in places[2:])
    pasted = image.clone()
    pasted[:, new_y : new_y + high, new_x : new_x + wide] = image[:, y : y + high, x : x + wide]
    return pasted
