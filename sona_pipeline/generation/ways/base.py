"""What every way to make outliers has in common, and what several of them need."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from diffusers import UNet2DConditionModel
from torch.utils._pytree import tree_map

from sona_pipeline.common.quiet import without_warnings
from sona_pipeline.pipelines.core import SONAMixin

if TYPE_CHECKING:
    from sona_pipeline.generation.make import OutlierMaker, Work
    from sona_pipeline.generation.settings import GenerationSettings

WARM_UP = 10 / 50
"""Share of the schedule in which SEGA leaves its concepts out; its own 10 steps are of 50."""
DRAWING_SCALE = 3.0
"""Classifier-free guidance of images that are drawn from noise."""
Group = TypeVar("Group", bound=Hashable)


class Way:
    """A way to make outliers.

    Args:
        pipe: a loaded pipeline.
        settings: how outliers are made.

    Attributes:
        uses_stop_step: whether an image is noised up to its planned stop step; the whole schedule is planned otherwise.
        uses_label: whether the outlier takes on the planned OOD label.
        shares_labels: whether images that are computed together share both labels, so that batches should, too.
        takes_embeddings: whether the meaning may be any embedding, and not a prompt only.
        needs_classifier: whether there has to be a detector that knows the ID classes.
        looks_at_all: whether `prepare` looks at all images first, so that a set cannot be made in parts.
        needs_unet: whether it works on the UNet of Stable Diffusion 1.x and 2.x, and with no other family.

    Raises:
        ValueError: the way does not go with the model.
    """

    uses_stop_step: bool = True
    uses_label: bool = True
    shares_labels: bool = False
    takes_embeddings: bool = False
    needs_classifier: bool = False
    looks_at_all: bool = False
    needs_unet: bool = False

    def __init__(self, pipe: SONAMixin, settings: GenerationSettings):
        self.pipe, self.settings = pipe, settings

    @classmethod
    def rows(cls, stop_step: int, steps: int) -> int:
        """Rows that the denoiser computes for an image of this stop step, of `steps`."""
        raise NotImplementedError

    def load(self, maker: OutlierMaker, classifier: str | None) -> None:
        """Load what the way needs besides the model, before anything is written.

        Args:
            maker: that will ask for outliers.
            classifier: folder of a detector, or None.

        Raises:
            ValueError: the detector is of other classes.
        """

    def prepare(self, maker: OutlierMaker) -> dict[str, torch.Tensor]:
        """What takes a while and is found once for a set, by its name; kept beside the set.

        Raises:
            ValueError: there are not the images for it.
        """
        return {}

    def begin(self, maker: OutlierMaker, prepared: dict[str, torch.Tensor]) -> None:
        """Take up what was prepared, before the first batch of each process."""

    def __call__(self, maker: OutlierMaker, work: Work) -> torch.Tensor:
        """Scaled latents `[B, c, h, w]` of the outliers of a batch.

        An outlier depends on its own item, source and generator alone, and on no other image of the batch.
        """
        raise NotImplementedError


def peer(kind: Callable[..., Any], pipe: SONAMixin, **others: Any) -> Any:
    """A pipeline of diffusers of the class `kind` with the parts of ours, without safety checker or progress bar."""
    parts = {name: getattr(pipe, name) for name in ("vae", "text_encoder", "tokenizer", "unet")}
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    absent = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    with without_warnings():  # several are marked as deprecated
        made = kind(**parts, scheduler=scheduler, **absent, **others)
    made.set_progress_bar_config(disable=True)
    return made


@contextmanager
def taking_float32(unet: UNet2DConditionModel) -> Iterator[None]:
    """Within it, the UNet takes float32 and gives it, whatever it computes in, as diffusers' pipelines need it."""

    def before(_: object, arguments: tuple, named: dict) -> tuple[tuple, dict]:
        sample, *others = arguments
        states = named["encoder_hidden_states"].to(unet.dtype)
        return (sample.to(unet.dtype), *others), named | {"encoder_hidden_states": states}

    hooks = [
        unet.register_forward_pre_hook(before, with_kwargs=True),
        unet.register_forward_hook(lambda _, arguments, output: tree_map(torch.Tensor.float, output)),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def in_groups(work: Work, groups: Sequence[Group], edit: Callable[[Group, list[int]], torch.Tensor]) -> torch.Tensor:
    """The results of `edit(group, members)` for the members of each group, put into the order of the batch."""
    results = torch.empty_like(work.source_latents)
    members: dict[Group, list[int]] = {}
    for place, group in enumerate(groups):
        members.setdefault(group, []).append(place)
    for group, places in members.items():
        results[places] = edit(group, places).to(results.dtype)
    return results


def pixels_of(maker: OutlierMaker, work: Work) -> torch.Tensor:
    """The sources of a batch as pixels `[B, C, H, W]` in [0, 1]."""
    return work.pixels.to(maker.pipe.device) / 2 + 0.5


@torch.no_grad()
def latents_of(maker: OutlierMaker, pixels: torch.Tensor) -> torch.Tensor:
    """Scaled latents of pixels `[B, C, H, W]` in [0, 1], at the mean of what the autoencoder gives.

    Raises:
        FloatingPointError: latents are NaN or infinite.
    """
    return maker.pipe.encode_image(pixels.clamp(0, 1) * 2 - 1, maker.pipe.device, None, sample=False)
