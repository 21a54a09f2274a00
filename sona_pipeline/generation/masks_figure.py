"""The masks of one image over its denoising steps, as a sheet."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from sona_pipeline.common.figures import extent, grid_of_images, show_image
from sona_pipeline.pipelines.core import SONAMixin

MASKS = {
    "id_semantic_mask": "ID semantics",
    "id_nuisance_mask": "ID nuisance",
    "ood_semantic_mask": "OOD semantics",
}


def masks_figure(
    pipe: SONAMixin,
    source: Image.Image,
    labels: tuple[str, str],
    prompts: tuple[str, str],
    stop_step: int,
    seed: int,
    columns: int = 8,
    **options: Any,
) -> Figure:
    """The masks of one image over its denoising steps, as in figure 4 of the paper.

    Args:
        pipe, source, prompts, stop_step, options: as for `SONAPipeline.__call__` (prompts are ID and OOD).
        labels: ID and OOD label, for the title.
        seed: of the image's noise.
        columns: steps to show, evenly spread.
    """
    seen: list[tuple[int, dict[str, torch.Tensor]]] = []

    def record(_: SONAMixin, step: int, __: torch.Tensor, tensors: dict[str, torch.Tensor]) -> dict:
        seen.append((step, {name: value[0].float().cpu() for name, value in tensors.items()}))
        return {}

    pipe(
        source,
        *prompts,
        stop_step=stop_step,
        generator=torch.Generator().manual_seed(seed),
        output_type="latent",
        callback_on_step_end=record,
        callback_on_step_end_tensor_inputs=["latents", *MASKS],
        **options,
    )
    shown = [seen[k] for k in np.unique(np.linspace(0, len(seen) - 1, min(columns, len(seen))).round().astype(int))]
    latents = torch.stack([tensors["latents"] for _, tensors in shown]).to(pipe.device)
    with torch.no_grad():
        images, _ = pipe.decode(latents, "pil")
    return _draw_masks(source, labels, stop_step, [step for step, _ in shown], images, [t for _, t in shown])


def _draw_masks(
    source: Image.Image,
    labels: tuple[str, str],
    stop_step: int,
    steps: list[int],
    images: list[Image.Image],
    tensors: list[dict[str, torch.Tensor]],
) -> Figure:
    rows = ["denoised", *MASKS.values()]
    figure = Figure(figsize=(1.25 * (len(images) + 1) + 0.8, 1.25 * len(rows) + 0.6), layout="constrained")
    axis = grid_of_images(figure, len(images) + 1, len(rows))
    for row, name in enumerate(rows):
        axis.text(-0.53, row, name, fontsize=9, rotation=90, ha="right", va="center")
        show_image(axis, source, 0, row)
    axis.text(0, -0.5, "source", fontsize=9, ha="center", va="bottom")
    first = steps[0]
    for column, (step, image, masks) in enumerate(zip(steps, images, tensors), start=1):
        axis.text(column, -0.5, f"t = {stop_step - (step - first)}", fontsize=9, ha="center", va="bottom")
        show_image(axis, image, column, 0)
        for row, name in enumerate(MASKS, start=1):
            show_image(axis, image, column, row)
            share = masks[name].mean(dim=0).numpy()
            axis.imshow(share, cmap="autumn", alpha=0.75 * share, extent=extent(image, column, row), vmin=0, vmax=1)
    figure.suptitle(f"{labels[0]} → {labels[1]}, stop step {stop_step}: masks over the steps", fontsize=10)
    return figure
