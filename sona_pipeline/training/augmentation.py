"""Random crops of training images, as `settings.AUGMENTATIONS` names them."""

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


def crop(size: int) -> list[v2.Transform]:
    """Any part of that size of the padded image: for small images."""
    return [v2.RandomCrop(size, padding=size // 8)]


def resized_crop(size: int) -> list[v2.Transform]:
    """Any part of the whole image, scaled: as for ImageNet."""
    return [ResizedCrop(size)]


def none(size: int) -> list[v2.Transform]:
    """The image as it is."""
    return []
