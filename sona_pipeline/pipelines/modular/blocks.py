"""The blocks of a family in their order."""

from __future__ import annotations

from typing import Any

from diffusers import SequentialPipelineBlocks

from sona_pipeline.pipelines.core import SONAMixin
from sona_pipeline.pipelines.modular.loop import DenoiseBlock
from sona_pipeline.pipelines.modular.steps import DecodeBlock, ImageBlock, InputBlock, NoiseBlock, TextBlock

BLOCKS = {
    "input": InputBlock,
    "text": TextBlock,
    "image": ImageBlock,
    "noise": NoiseBlock,
    "denoise": DenoiseBlock,
    "decode": DecodeBlock,
}


class SONABlocks(SequentialPipelineBlocks):
    """Labelled images become semantic outliers: algorithm 2 of the paper in blocks of modular diffusers.

    Images of one call have one stop step, as they share a schedule. The settings of the guidance are those of the
    component `guider`, a `SONAGuider`.

    Args:
        family: pipeline of a family of models, whose components are used.
    """

    description = "Makes semantic outliers of labelled images, by guidance region by region (SONA)."

    def __init__(self, family: type[SONAMixin]):
        self.block_names, self.block_classes = list(BLOCKS), [block(family) for block in BLOCKS.values()]
        super().__init__()

    def init_pipeline(self, *arguments: Any, **named: Any) -> Any:
        """A modular pipeline, for the checkpoint that is given, without what it leaves out; see diffusers' own."""
        pipe = super().init_pipeline(*arguments, **named)
        for spec in pipe._component_specs.values():
            if spec.type_hint is None:  # diffusers would look for it, and say at length that it is not there
                spec.pretrained_model_name_or_path = None
        return pipe
