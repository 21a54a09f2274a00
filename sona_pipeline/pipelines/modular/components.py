"""Components of modular pipelines, as the pipeline of a family has them, and back."""

from __future__ import annotations

import enum
import inspect
import typing
from typing import Any

from diffusers import ComponentSpec, DDIMScheduler, ModularPipelineBlocks
from diffusers.modular_pipelines.modular_pipeline_utils import ConfigSpec

from sona_pipeline.pipelines.core import SONAMixin


def parts_of(family: type[SONAMixin]) -> dict[str, tuple[Any, Any]]:
    """Type and default of each argument of a family's pipeline, by name; a choice of types stands by its first."""
    hints = typing.get_type_hints(family.__init__)
    parts = {}
    for name, parameter in list(inspect.signature(family.__init__).parameters.items())[1:]:
        hint = next(iter(typing.get_args(hints[name])), hints[name])
        is_any_scheduler = isinstance(hint, type) and issubclass(hint, enum.Enum)
        parts[name] = DDIMScheduler if is_any_scheduler else hint, parameter.default
    return parts


def component_specs(family: type[SONAMixin]) -> list[Any]:
    """What a family's pipeline is made of."""
    return [ComponentSpec(name, kind) for name, (kind, _) in parts_of(family).items() if kind not in SETTINGS]


def config_specs(family: type[SONAMixin]) -> list[Any]:
    """What a family's pipeline is told besides."""
    return [ConfigSpec(name, default) for name, (kind, default) in parts_of(family).items() if kind in SETTINGS]


SETTINGS = (bool, int, float, str)
"""Types of the arguments that are no components."""


def pipeline_of(family: type[SONAMixin], components: Any) -> Any:
    """A family's pipeline of the components of a modular one; both have the scheduler that SONA can use."""
    given = {
        name: components.config[name] if kind in SETTINGS else getattr(components, name)
        for name, (kind, _) in parts_of(family).items()
    }
    pipe: Any = family(**given)
    if pipe.scheduler is not components.scheduler:
        components.update_components(scheduler=pipe.scheduler)
    return pipe


class FamilyBlock(ModularPipelineBlocks):
    """A block that works through the pipeline of a family."""

    def __init__(self, family: type[SONAMixin]):
        super().__init__()
        self.family = family

    @property
    def expected_components(self) -> list[Any]:
        """Those of the family's pipeline."""
        return component_specs(self.family)

    @property
    def expected_configs(self) -> list[Any]:
        """Those of the family's pipeline."""
        return config_specs(self.family)
