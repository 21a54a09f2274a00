"""Random crops of training images, as `settings.AUGMENTATIONS` names them."""

from torchvision.transforms import v2


def crop(size: int) -> list[v2.Transform]:
    """Any part of that size of the padded image: for small images."""
    return [v2.RandomCrop(size, padding=size // 8)]


def resized_crop(size: int) -> list[v2.Transform]:
    """Any part of the image of any size, scaled: as for ImageNet."""
    return [v2.RandomResizedCrop(size, antialias=True)]


def none(size: int) -> list[v2.Transform]:
    """The image as it is."""
    return []
