"""Random changes of training images and of outliers, as `settings` names them."""

import torch
from torchvision import transforms as v1
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional


class ResizedCrop(v2.Transform):
    """Any part of an image of any shape, of a size drawn by its middle square, scaled to `size` x `size` pixels.

    Shares of the area (0.08 to 1) and proportions (3 : 4 to 4 : 3) are drawn as torchvision's RandomResizedCrop draws
    them for a square with the short side of the image. On a square image it is the same; on others the part may lie
    anywhere, too, but things do not become larger or smaller by it. So an outlier, which is a square part of its ID
    image, and the ID image itself are seen at one scale, and the scale does not tell them apart.
    """

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """A part `[C, S, S]` of an image `[C, H, W]`."""
        height, width = image.shape[-2:]
        side = min(height, width)
        square = image[..., :side, :side]
        top, left, rows, columns = v1.RandomResizedCrop.get_params(square, scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3))
        if height > side:
            top = int(torch.randint(height - rows + 1, ()))
        if width > side:
            left = int(torch.randint(width - columns + 1, ()))
        return functional.resized_crop(image, top, left, rows, columns, [self.size, self.size], antialias=True)


class Shuffled(v2.Transform):
    """Quarters or sixteenths of an image in a random order; what is left over of sides that are no multiple stays."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """An image `[C, H, W]` of the same size."""
        count = 2 if torch.rand(()) < 0.5 else 4
        high, wide = image.shape[-2] // count, image.shape[-1] // count
        squares = image[..., : count * high, : count * wide].unflatten(-2, (count, high)).unflatten(-1, (count, wide))
        squares = squares.transpose(-2, -3).flatten(-4, -3)[..., torch.randperm(count**2), :, :]
        shuffled = image.clone()
        whole = squares.unflatten(-3, (count, count)).transpose(-2, -3).flatten(-2).flatten(-3, -2)
        shuffled[..., : count * high, : count * wide] = whole
        return shuffled


def strong(size: int) -> list[v2.Transform]:
    """Three times of four one change out of many kinds, for outliers: whatever is done to one leaves it an outlier.

    So outliers also show images unlike the ID images in colour, sharpness and layout. The kinds are TrivialAugment
    (Müller and Hutter 2021), the negative, grey, two bits a channel, shuffled parts and blur.
    """
    blur = v2.GaussianBlur(2 * (size // 10) + 1, (size / 32, size / 8))
    kinds = [v2.RandomInvert(1.0), v2.RandomGrayscale(1.0), v2.RandomPosterize(2, 1.0), Shuffled(), blur]
    return [v2.RandomApply([v2.RandomChoice([v2.TrivialAugmentWide(), *kinds])], 0.75)]


def crop(size: int) -> list[v2.Transform]:
    """Any part of that size of the padded image: for small images."""
    return [v2.RandomCrop(size, padding=size // 8)]


def resized_crop(size: int) -> list[v2.Transform]:
    """Any part of the whole image, scaled: as for ImageNet."""
    return [ResizedCrop(size)]


def none(size: int) -> list[v2.Transform]:
    """No change."""
    return []
