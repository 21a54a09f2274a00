"""Blocks before and after the denoising."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers import InputParam, OutputParam
from diffusers.image_processor import PipelineImageInput
from diffusers.utils.torch_utils import randn_tensor

from sona_pipeline.pipelines.arguments import check_counts, check_output_type, check_steps, checked_generators
from sona_pipeline.pipelines.batch import Conditions
from sona_pipeline.pipelines.modular.components import FamilyBlock, pipeline_of
from sona_pipeline.pipelines.schedules import check_scheduler, noise_units, noised

GENERATOR = InputParam(
    "generator",
    torch.Generator | list[torch.Generator],
    description="One for the call, or one an image. Gives the stop step (if it is drawn), the VAE sample, the noise.",
)
STEPS = InputParam("num_inference_steps", int, default=50, description="Steps T of the full schedule.")
OUTPUT_TYPE = InputParam("output_type", str, default="pil", description="'pil', 'np', 'pt' or 'latent'.")
STOP_STEPS = InputParam("stop_steps", list[int], required=True, description="Steps to go, for each image.")
ATTENTION = InputParam("cross_attention_kwargs", dict, description="Passed on to the attention processors.")


class InputBlock(FamilyBlock):
    """What images and numbers of a call mean; whatever is wrong with them is said before any model is run."""

    description = "Checks images and numbers, and sets how far the images are noised."

    @property
    def inputs(self) -> list[Any]:
        """The images, and how far they are noised."""
        return [
            InputParam(
                "image",
                PipelineImageInput,
                required=True,
                description="PIL images, arrays `[B, H, W, C]` or tensors `[B, C, H, W]` in [0, 1], or latents.",
            ),
            InputParam("strength", float, description="Part of the schedule to noise up to, in (0, 1]; else drawn."),
            InputParam("stop_step", int, description="The same as an exact number of steps, 1 .. T."),
            STEPS,
            GENERATOR,
            OUTPUT_TYPE,
        ]

    @property
    def intermediate_outputs(self) -> list[Any]:
        """Images as a tensor, and numbers."""
        return [
            OutputParam("pixels", torch.Tensor, description="Images `[B, C, H, W]` in [-1, 1], or latents."),
            OutputParam("batch_size", int, description="How many images there are."),
            OutputParam("stop_steps", list[int], description="The stop step of each image: the same for all."),
        ]

    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        """Check everything, and draw the stop step if none is given."""
        it, pipe = self.get_block_state(state), pipeline_of(self.family, components)
        pipe.check_parts()
        it.pixels = pipe.preprocess_image(it.image)
        it.batch_size = len(it.pixels)
        sources = checked_generators(it.generator, it.batch_size)
        check_steps(it.num_inference_steps, pipe.scheduler.config.get("num_train_timesteps", it.num_inference_steps))
        check_output_type(it.output_type)
        check_scheduler(pipe.scheduler, pipe.schedule_of(it.num_inference_steps, pipe.latent_shape(it.pixels)))
        for name in ("strength", "stop_step"):
            if isinstance(value := it[name], (Sequence, np.ndarray, torch.Tensor)):
                raise ValueError(
                    f"`{name}` is {value!r}, but images of one call of a modular pipeline have one schedule: give one"
                    f" number, or call `{self.family.__name__}`."
                )
        source = sources[0] if isinstance(sources, list) else sources
        it.stop_steps = it.batch_size * pipe.get_stop_steps(
            1, it.strength, it.stop_step, it.num_inference_steps, source
        )
        self.set_block_state(state, it)
        return components, state


class TextBlock(FamilyBlock):
    """Empty, ID and OOD prompts become conditions."""

    description = "Encodes the empty, the ID and the OOD prompts; each distinct text once."

    @property
    def inputs(self) -> list[Any]:
        """Prompts, or what they become."""
        embeds = torch.Tensor | Conditions
        return [
            InputParam("id_prompt", str | list[str], description="What the images show; one, or one an image."),
            InputParam("ood_prompt", str | list[str], description="What the outliers shall mean; likewise."),
            InputParam("id_prompt_embeds", embeds, description="Instead of the ID prompt."),
            InputParam("ood_prompt_embeds", embeds, description="Instead of the OOD prompt."),
            InputParam("uncond_prompt_embeds", embeds, description="Instead of those of the empty prompt."),
            InputParam("clip_skip", int, description="Layers of the text encoder to skip for both prompts."),
            ATTENTION,
            InputParam("batch_size", int, required=True, description="How many images there are."),
        ]

    @property
    def intermediate_outputs(self) -> list[Any]:
        """The conditions."""
        return [OutputParam("conditions", Conditions, description="By name, `[3, B, ...]`: empty, ID and OOD.")]

    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        """Check the prompts, and encode them."""
        it, pipe = self.get_block_state(state), pipeline_of(self.family, components)
        check_counts(clip_skip=it.clip_skip)
        prompts = {"id_prompt": it.id_prompt, "ood_prompt": it.ood_prompt}
        embeds = {f"{name}_prompt": it[f"{name}_prompt_embeds"] for name in ("uncond", "id", "ood")}
        pipe.check_prompts(it.batch_size, prompts, embeds)
        lora_scale = (it.cross_attention_kwargs or {}).get("scale")
        device = components._execution_device
        it.conditions = pipe.encode_prompts(it.batch_size, prompts, embeds, device, it.clip_skip, lora_scale)
        self.set_block_state(state, it)
        return components, state


class ImageBlock(FamilyBlock):
    """Images become latents."""

    description = "Encodes the images."

    @property
    def inputs(self) -> list[Any]:
        """The images as a tensor."""
        pixels = InputParam("pixels", torch.Tensor, required=True, description="Images `[B, C, H, W]` in [-1, 1].")
        return [pixels, GENERATOR]

    @property
    def intermediate_outputs(self) -> list[Any]:
        """Latents."""
        return [OutputParam("image_latents", torch.Tensor, description="Scaled latents z_0 `[B, C, H, W]`.")]

    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        """Encode the images."""
        it, pipe = self.get_block_state(state), pipeline_of(self.family, components)
        it.image_latents = pipe.encode_image(it.pixels, components._execution_device, it.generator)
        self.set_block_state(state, it)
        return components, state


class NoiseBlock(FamilyBlock):
    """Latents are noised part-way, and the scheduler is set to start there."""

    description = "Sets the schedule, and adds the noise of the stop step."

    @property
    def inputs(self) -> list[Any]:
        """Latents, and how far they are noised."""
        latents = InputParam("image_latents", torch.Tensor, required=True, description="Latents z_0 `[B, C, H, W]`.")
        return [latents, STEPS, STOP_STEPS, GENERATOR]

    @property
    def intermediate_outputs(self) -> list[Any]:
        """Noised latents, and the steps to go."""
        return [
            OutputParam("latents", torch.Tensor, description="Noised latents `[B, C, H, W]`."),
            OutputParam("timesteps", torch.Tensor, description="Time steps to go."),
            OutputParam("noise_units", list[float], description="Turn what is predicted to noise; one a step."),
        ]

    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        """Set the schedule, and add the noise."""
        it, pipe = self.get_block_state(state), pipeline_of(self.family, components)
        device, source = components._execution_device, it.image_latents
        schedule = pipe.schedule_of(it.num_inference_steps, source.shape)
        schedule.set(pipe.scheduler, device)
        noise = randn_tensor(source.shape, generator=it.generator, device=device, dtype=source.dtype)
        joins = [(it.num_inference_steps - steps) * pipe.scheduler.order for steps in it.stop_steps]
        it.latents = noised(pipe.scheduler, source, noise, joins)
        it.timesteps = schedule.set(pipe.scheduler, device, begin=joins[0])[joins[0] :]
        it.noise_units = noise_units(pipe.scheduler)[joins[0] :]
        self.set_block_state(state, it)
        return components, state


class DecodeBlock(FamilyBlock):
    """Latents become images."""

    description = "Decodes the latents."

    @property
    def inputs(self) -> list[Any]:
        """Latents, and the form of the images."""
        latents = InputParam("latents", torch.Tensor, required=True, description="Denoised latents `[B, C, H, W]`.")
        return [latents, OUTPUT_TYPE]

    @property
    def intermediate_outputs(self) -> list[Any]:
        """The outliers."""
        images = list[PIL.Image.Image] | np.ndarray | torch.Tensor
        return [
            OutputParam("images", images, description="The outliers, or their latents, by `output_type`."),
            OutputParam("nsfw_content_detected", list[bool], description="A flag an image, or None."),
        ]

    def __call__(self, components: Any, state: Any) -> tuple[Any, Any]:
        """Decode the latents."""
        it, pipe = self.get_block_state(state), pipeline_of(self.family, components)
        it.images, it.nsfw_content_detected = pipe.decode(it.latents, it.output_type)
        self.set_block_state(state, it)
        return components, state
