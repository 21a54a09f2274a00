"""Pictures of a trace: masks over the image, strips of all steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE = 256
"""Pixels that pictures on the page have at least on a side."""
COLOURS = {
    "id_semantic_mask": (230, 60, 50),
    "id_nuisance_mask": (50, 140, 230),
    "ood_unfiltered_mask": (240, 170, 20),
    "ood_semantic_mask": (40, 170, 80),
}
COLUMNS, TILE, MARGIN = 25, 56, 130
"""Of the strip: steps side by side, pixels of a picture, and pixels for the names of the rows."""


def enlarged(image: Image.Image, side: int = SIDE) -> Image.Image:
    """A small image in RGB with whole pixels made larger, to at least `side`; a large one as it is."""
    factor = -(-side // min(image.size))
    return image.convert("RGB").resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def overlay(image: Image.Image, share: np.ndarray, colour: tuple[int, int, int]) -> Image.Image:
    """A mask over an image: the more latent channels have it at a place, the more of its colour.

    Args:
        image: of any size.
        share: `[h, w]` in [0, 1].
        colour: RGB.
    """
    image = image.convert("RGB")
    cover = Image.fromarray((200 * share).round().astype(np.uint8)).resize(image.size, Image.Resampling.NEAREST)
    return Image.composite(Image.new("RGB", image.size, colour), image, cover)


def strip(
    backgrounds: Sequence[Image.Image], steps: Sequence[int], masks: Mapping[str, Sequence[np.ndarray]], names: dict
) -> Image.Image:
    """All steps side by side, in bands of `COLUMNS`: the denoised image, and each mask over it.

    Args:
        backgrounds: a picture for each step.
        steps: their numbers.
        masks: for each mask its shares `[h, w]`, one a step.
        names: of the masks, for the rows.
    """
    rows = 1 + len(masks)
    bands = -(-len(steps) // COLUMNS)
    band_height = rows * TILE + 20
    sheet = Image.new("RGB", (MARGIN + min(COLUMNS, len(steps)) * TILE, bands * band_height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    small = [image.convert("RGB").resize((TILE - 2, TILE - 2), Image.Resampling.BICUBIC) for image in backgrounds]
    for band in range(bands):
        top = band * band_height + 18
        for row, name in enumerate(["denoised", *(names[mask] for mask in masks)]):
            draw.multiline_text((4, top + row * TILE + 8), _broken(name), fill="black", font=font)
    for k, step in enumerate(steps):
        x, top = MARGIN + k % COLUMNS * TILE, k // COLUMNS * band_height + 18
        draw.text((x + 4, top - 16), f"t={step}", fill="black", font=font)
        sheet.paste(small[k], (x, top))
        for row, (name, shares) in enumerate(masks.items(), start=1):
            sheet.paste(overlay(small[k], shares[k], COLOURS[name]), (x, top + row * TILE))
    return sheet


def _broken(text: str, width: int = 16) -> str:
    """The text on lines of about `width` characters."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) >= width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
