"""AutoAugOOD: transforms that break an image, chosen by how far they take it from the ID images."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.manifold import TSNE
from sklearn.neighbors import KernelDensity

from sona_pipeline.generation.ways.base import Way, latents_of, pixels_of
from sona_pipeline.generation.ways.cutpaste import cut_and_pasted

if TYPE_CHECKING:
    from sona_pipeline.generation.make import OutlierMaker, Work

LOOKED_AT, CHUNK, PERPLEXITY, BANDWIDTH = 256, 16, 30.0, 0.5
"""Images that transforms are judged by, how many are encoded at a time; the paper's for t-SNE and kernel density."""
GRID, BEND = 4, 0.1
"""Of "elastic": places of the grid along a side, and the deviation of the shifts in sides."""
Transform = Callable[[torch.Tensor, torch.Tensor, torch.Generator], torch.Tensor]
"""From an image `[C, S, S]`, another one of the batch or the data, and a generator to an outlier."""


def mixup(image: torch.Tensor, other: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Half of the one and half of the other."""
    return (image + other) / 2


def elastic(image: torch.Tensor, other: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Pulled out of shape: by smooth shifts of a tenth of the side, drawn on a coarse grid."""
    shifts = BEND * 2 * torch.randn(1, 2, GRID, GRID, generator=generator)
    shifts = F.interpolate(shifts, image.shape[-2:], mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    still = F.affine_grid(torch.eye(2, 3)[None], [1, *image.shape], align_corners=False)
    places = (still + shifts).to(image)
    return F.grid_sample(image[None], places, padding_mode="reflection", align_corners=False)[0]


def rotation(image: torch.Tensor, other: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """By one, two or three quarters of a turn."""
    return image.rot90(int(torch.randint(1, 4, (), generator=generator)), (-2, -1))


def cutperm(image: torch.Tensor, other: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Quarters in another order."""
    half = image.shape[-1] // 2
    quarters = [image[:, y : y + half, x : x + half] for y in (0, half) for x in (0, half)]
    order = torch.randperm(4, generator=generator).tolist()
    while order == [0, 1, 2, 3]:
        order = torch.randperm(4, generator=generator).tolist()
    rows = [torch.cat([quarters[order[k]], quarters[order[k + 1]]], dim=2) for k in (0, 2)]
    changed = image.clone()
    changed[:, : 2 * half, : 2 * half] = torch.cat(rows, dim=1)
    return changed


def cutout(image: torch.Tensor, other: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A grey square of half the side somewhere."""
    side = image.shape[-1]
    y, x = torch.randint(side - side // 2 + 1, (2,), generator=generator).tolist()
    changed = image.clone()
    changed[:, y : y + side // 2, x : x + side // 2] = 0.5
    return changed


def cutpaste(image: torch.Tensor, other: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A patch put elsewhere."""
    return cut_and_pasted(image, generator)


TRANSFORMS: dict[str, Transform] = {
    transform.__name__: transform for transform in (mixup, elastic, rotation, cutperm, cutout, cutpaste)
}


class AutoAug(Way):
    """AutoAugOOD (Mirzaei et al. 2024): one transform for each image, those most often that lead farthest away.

    ID images and each transform of them are laid out in two dimensions by t-SNE. A transform is as likely as the
    softmax of the divergence of its density from that of the ID images. The paper embeds images by CLIP; here the
    embedding is the model's own latents.
    """

    uses_stop_step = uses_label = False
    looks_at_all = True

    @classmethod
    def rows(cls, stop_step: int, steps: int) -> int:
        """The UNet has no part in it."""
        return 0

    def prepare(self, maker: OutlierMaker) -> dict[str, torch.Tensor]:
        """How likely each transform is, and the images that this was found by, of which others are mixed in."""
        order = np.argsort(maker.plan.hashes, kind="stable")[:LOOKED_AT]
        work = maker.encode(maker.read(maker.plan.batch(order)))
        if len(work.items) < 2:
            raise ValueError(f"the way 'autoaug' needs two images or more, and there are {len(work.items)}")
        self.others = pixels_of(maker, work)
        rows = [_embedded(maker, self.others)]
        for transform in TRANSFORMS.values():
            generators = [torch.Generator().manual_seed(item.seed) for item in work.items]
            rows.append(_embedded(maker, self._changed(self.others, [transform] * len(generators), generators)))
        kept = (self.others * 255).round().to(torch.uint8)
        return {"shares": torch.tensor(probabilities(rows)), "others": kept.cpu().contiguous()}

    def begin(self, maker: OutlierMaker, prepared: dict[str, torch.Tensor]) -> None:
        """Shares and other images."""
        self.shares, self.others = prepared["shares"], prepared["others"].to(maker.pipe.device).float() / 255

    def __call__(self, maker: OutlierMaker, work: Work) -> torch.Tensor:
        """Image by image, and back into latents."""
        transforms = list(TRANSFORMS.values())
        drawn = [transforms[int(torch.multinomial(self.shares, 1, generator=g))] for g in work.generators]
        return latents_of(maker, self._changed(pixels_of(maker, work), drawn, work.generators))

    def _changed(
        self, pixels: torch.Tensor, transforms: list[Transform], generators: list[torch.Generator]
    ) -> torch.Tensor:
        others = [self._other(image, generator) for image, generator in zip(pixels, generators)]
        changed = zip(transforms, pixels, others, generators)
        return torch.stack([transform(image, other, g) for transform, image, other, g in changed])

    def _other(self, image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """One of the images that is not this one."""
        places = torch.randperm(len(self.others), generator=generator)[:2].tolist()
        first, second = (self.others[place] for place in places)
        return second if (first - image).abs().max() < 1 / 255 else first


def _embedded(maker: OutlierMaker, pixels: torch.Tensor) -> np.ndarray:
    """Latents `[N, D]`, a few images at a time."""
    return torch.cat([latents_of(maker, some).float().flatten(1).cpu() for some in pixels.split(CHUNK)]).numpy()


def probabilities(embedded: list[np.ndarray]) -> list[float]:
    """How likely each kind of outlier is, by embeddings `[N, D]` of the ID images and of each kind."""
    sizes = [len(rows) for rows in embedded]
    perplexity = min(PERPLEXITY, (sum(sizes) - 1) / 3)
    plane = TSNE(2, perplexity=perplexity, init="pca", random_state=0).fit_transform(np.concatenate(embedded))
    known, *kinds = np.split(plane, np.cumsum(sizes)[:-1])
    density = KernelDensity(bandwidth=BANDWIDTH)
    own = density.fit(known).score_samples(known)
    divergences = np.array([np.mean(own - density.fit(kind).score_samples(known)) for kind in kinds])
    shares = np.exp(divergences - divergences.max())
    return (shares / shares.sum()).tolist()
