"""The denoising: at each step three predictions, the guidance of them, and a step of the scheduler."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ComponentSpec, InputParam, LoopSequentialPipelineBlocks, OutputParam
from diffusers.configuration_utils import FrozenDict
from diffusers.modular_pipelines.modular_pipeline import ModularPipelineBlocks

from sona_pipeline.pipelines.arguments import check_numbers
from sona_pipeline.pipelines.batch import Conditions
from sona_pipeline.pipelines.core import SONAMixin, room_to_compile
from sona_pipeline.pipelines.guidance import SONAGuidance
from sona_pipeline.pipelines.modular.components import FamilyBlock, pipeline_of
from sona_pipeline.pipelines.modular.guider import SONAGuider
from sona_pipeline.pipelines.modular.steps import ATTENTION, GENERATOR, STEPS, STOP_STEPS
from sona_pipeline.pipelines.schedules import step_kwargs

PREDICTIONS = ("noise_uncond", "noise_id", "noise_ood")
LATENTS = InputParam("latents", torch.Tensor, required=True, description="Noised latents `[B, C, H, W]`.")


class PredictBlock(FamilyBlock):
    """Within the loop: one call of the denoiser for all three prompts."""

    description = "Predicts for the empty, the ID and the OOD prompt, in one call of the denoiser."

    @property
    def inputs(self) -> list[Any]:
        """Latents and conditions."""
        conditions = InputParam("conditions", Conditions, required=True, description="By name, `[3, B, ...]`.")
        return [LATENTS, conditions, ATTENTION]

    @property
    def intermediate_outputs(self) -> list[Any]:
        """The three predictions."""
        return [OutputParam(name, torch.Tensor, description="A prediction `[B, C, H, W]`.") for name in PREDICTIONS]

    def __call__(self, components: Any, it: Any, i: int, t: torch.Tensor) -> tuple[Any, Any]:
        """Predict."""
        pipe = pipeline_of(self.family, components)
        found = pipe.predict_noise(it.latents, t, it.conditions, it.cross_attention_kwargs)
        it.noise_uncond, it.noise_id, it.noise_ood = found
        return components, it


class GuideBlock(ModularPipelineBlocks):
    """Within the loop: what the guider makes of three predictions."""

    description = "Guides region by region; the masks are there for any block that comes after."

    @property
    def expected_components(self) -> list[Any]:
        """The guider."""
        return [ComponentSpec("guider", SONAGuider, config=FrozenDict(), default_creation_method="from_config")]

    @property
    def inputs(self) -> list[Any]:
        """Predictions, and the place in the full schedule."""
        predictions = [InputParam(name, torch.Tensor, required=True) for name in PREDICTIONS]
        units = InputParam("noise_units", list[float], required=True, description="One a step; see `NoiseBlock`.")
        return [*predictions, units, STEPS, STOP_STEPS]

    @property
    def intermediate_outputs(self) -> list[Any]:
        """The guided prediction, guidance and masks."""
        names, told = SONAGuidance._fields[1:], "Bool `[B, C, H, W]`; see `SONAGuidance`."
        return [
            OutputParam("noise_pred", torch.Tensor, description="The guided prediction, as the scheduler takes it."),
            OutputParam("guidance", torch.Tensor, description="In units of noise, without the scale s."),
            *(OutputParam(name, torch.Tensor, description=told) for name in names),
        ]

    def __call__(self, components: Any, it: Any, i: int, t: torch.Tensor) -> tuple[Any, Any]:
        """Guide; warm-up and cool-down count on the full schedule."""
        guider = components.guider
        number = it.num_inference_steps - it.stop_steps[0] + i // components.scheduler.order
        guider.set_state(step=number, num_inference_steps=it.num_inference_steps, timestep=t)
        parts = guider.prepare_inputs({"noise_pred": tuple(it[name] for name in PREDICTIONS)})
        found = guider(parts)
        it.noise_pred = found.pred
        for name in SONAGuidance._fields:
            it[name] = found[name]
        it.guidance = it.guidance * it.noise_units[i]
        return components, it


class SchedulerBlock(FamilyBlock):
    """Within the loop: a step of the scheduler."""

    description = "Takes a step with the guided prediction."

    @property
    def expected_components(self) -> list[Any]:
        """The scheduler."""
        return [spec for spec in super().expected_components if spec.name == "scheduler"]

    @property
    def inputs(self) -> list[Any]:
        """Latents and prediction."""
        predicted = InputParam("noise_pred", torch.Tensor, required=True, description="The guided prediction.")
        eta = InputParam("eta", float, default=0.0, description="Eta of DDIM; ignored by other schedulers.")
        return [LATENTS, predicted, eta, GENERATOR]

    @property
    def intermediate_outputs(self) -> list[Any]:
        """Latents of the next step."""
        return [OutputParam("latents", torch.Tensor, description="Latents `[B, C, H, W]`.")]

    def __call__(self, components: Any, it: Any, i: int, t: torch.Tensor) -> tuple[Any, Any]:
        """Take a step."""
        extra = step_kwargs(components.scheduler, it.eta, it.generator)
        it.latents = components.scheduler.step(it.noise_pred, t, it.latents, **extra, return_dict=False)[0]
        return components, it


class DenoiseBlock(LoopSequentialPipelineBlocks):
    """The loop. A block that is inserted into `sub_blocks` after "guide" reads the masks of every step."""

    description = "Denoises from the stop step to the image."

    def __init__(self, family: type[SONAMixin]):
        self.family = family
        self.block_names = ["predict", "guide", "step"]
        self.block_classes = [PredictBlock(family), GuideBlock(), SchedulerBlock(family)]
        super().__init__()

    @property
    def loop_inputs(self) -> list[Any]:
        """The steps to go."""
        return [InputParam("timesteps", torch.Tensor, required=True, description="Time steps to go.")]

    @torch.no_grad()
    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        """Denoise; FloatingPointError if latents become NaN or infinite."""
        it = self.get_block_state(state)
        check_numbers(eta=it.eta)
        denoiser = pipeline_of(self.family, components).denoiser
        with room_to_compile(denoiser), self.progress_bar(total=len(it.timesteps)) as progress_bar:
            for i, t in enumerate(it.timesteps):
                components, it = self.loop_step(components, it, i=i, t=t)
                progress_bar.update()
        bad = (~it.latents.isfinite()).flatten(1).any(dim=1).tolist()
        if True in bad:
            raise FloatingPointError(
                f"The latents of image {bad.index(True)} became NaN or infinite: try bfloat16 or float32, or a guider"
                " with a lower `guidance_scale`."
            )
        self.set_block_state(state, it)
        return components, state
