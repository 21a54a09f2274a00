"""The call that all families of models share: algorithm 2 of the paper, and the checks before it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import PipelineImageInput
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor

from sona_pipeline.pipelines.arguments import (
    Generators,
    check_counts,
    check_numbers,
    check_output_type,
    check_steps,
    checked_generators,
    draw_step,
    step_of_strength,
    steps_of,
)
from sona_pipeline.pipelines.batch import Batch, Callback, Conditions, Sega, Step
from sona_pipeline.pipelines.guidance import SONAGuidance, check_mask_options, sona_guidance
from sona_pipeline.pipelines.images import ImagesMixin
from sona_pipeline.pipelines.prompts import Embeds, Prompts, PromptsMixin
from sona_pipeline.pipelines.saving import SavingMixin
from sona_pipeline.pipelines.schedules import (
    SCHEDULERS_WITHOUT_HISTORY,
    Schedule,
    check_scheduler,
    noise_units,
    noised,
    seen_by_model,
    step_kwargs,
)


@dataclass
class SONAPipelineOutput(BaseOutput):
    """Output of a SONA pipeline.

    Attributes:
        images: the outliers, in the order of the input images: a list of PIL images, an array `[B, H, W, C]` or a
            tensor `[B, C, H, W]` in [0, 1], or latents, by `output_type`.
        stop_steps: the stop step of each image, 1 .. `num_inference_steps`; over `num_inference_steps`, its strength.
        nsfw_content_detected: a flag an image if the checkpoint has a safety checker, else None.
    """

    images: list[PIL.Image.Image] | np.ndarray | torch.Tensor
    stop_steps: list[int]
    nsfw_content_detected: list[bool] | None


class SONAMixin(SavingMixin, ImagesMixin, PromptsMixin):
    """Algorithm 2 on the parts of a pipeline; a family is a `DiffusionPipeline` with it, and says what is its own.

    See `Family` for that.
    """

    _interrupt: bool
    _num_timesteps: int
    _callback_tensor_inputs = ["latents", *SONAGuidance._fields[1:], "noise_pred", "guidance"]

    @property
    def interrupt(self) -> bool:
        """Whether a callback asked for the end of the denoising, by `pipe._interrupt = True`."""
        return self._interrupt

    @property
    def num_timesteps(self) -> int:
        """Calls of the denoiser in the current run."""
        return self._num_timesteps

    @torch.no_grad()
    def __call__(
        self,
        image: PipelineImageInput,
        id_prompt: str | list[str] | None = None,
        ood_prompt: str | list[str] | None = None,
        strength: float | Sequence[float] | None = None,
        stop_step: int | Sequence[int] | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 10.0,
        mask_threshold: float = 0.2,
        mask_granularity: str = "channel",
        remove_id_semantics: bool = True,
        preserve_id_nuisance: bool = True,
        add_ood_semantics: bool = True,
        filter_ood_by_nuisance: bool = True,
        global_guidance: bool = False,
        warmup_steps: int = 0,
        cooldown_steps: int | None = None,
        momentum_scale: float = 0.0,
        momentum_beta: float = 0.4,
        eta: float = 0.0,
        generator: Generators = None,
        id_prompt_embeds: torch.Tensor | Conditions | None = None,
        ood_prompt_embeds: torch.Tensor | Conditions | None = None,
        uncond_prompt_embeds: torch.Tensor | Conditions | None = None,
        clip_skip: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[..., dict] | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        cross_attention_kwargs: dict[str, Any] | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> SONAPipelineOutput | tuple:
        r"""Make one outlier of each image (algorithm 2 of the paper).

        Costs exactly 3 x (sum of the stop steps) rows in the denoiser, with first-order schedulers.

        Args:
            image: PIL images, arrays `[B, H, W, C]` or tensors `[B, C, H, W]` in [0, 1], or a list of one of these,
                all of one size, with sides that the model's factor divides (8 for Stable Diffusion 1 and 2). A tensor
                with as many channels as the model's latents (4 there) is taken as latents.
            id_prompt, ood_prompt: what the images show and what the outliers shall mean; one for all, or one an image.
            strength: part of the schedule to noise up to, in (0, 1]; one for all or one an image. Gives
                `int(num_inference_steps * strength)` steps. None draws a stop step for each image, uniformly.
            stop_step: the same as an exact number of steps, 1 .. `num_inference_steps`; instead of `strength`.
            num_inference_steps: steps T of the full schedule.
            guidance_scale: s of (2).
            mask_threshold, mask_granularity, remove_id_semantics, preserve_id_nuisance, add_ood_semantics,
            filter_ood_by_nuisance, global_guidance: see `sona_guidance`.
            warmup_steps: no guidance in the first steps, counted on the full schedule (SEGA; 0 is off).
            cooldown_steps: no guidance from this step of the full schedule on (SEGA; None is off).
            momentum_scale, momentum_beta: see `add_momentum` (SEGA; scale 0 is off).
            eta: eta of DDIM; ignored by other schedulers.
            generator: one for the call, or one an image, which makes an image independent of its batch. Each gives
                the stop step (if it is drawn), then the VAE sample, then the noise.
            id_prompt_embeds, ood_prompt_embeds: text embeddings `[1 or B, L, D]` instead of the prompts, or all that
                `encode_texts` gives for one, by name.
            uncond_prompt_embeds: the same instead of those of the empty prompt.
            clip_skip: layers of the text encoder to skip for the ID and OOD prompts.
            output_type: "pil", "np", "pt" or "latent".
            return_dict: False returns the tuple (images, stop_steps, nsfw_content_detected).
            callback_on_step_end: called as `callback(pipe, step, timestep, tensors)` after each step, where
                `step` counts on the full schedule; "latents" in the dictionary that it returns replace the latents,
                and `pipe._interrupt = True` ends the denoising.
            callback_on_step_end_tensor_inputs: names of `_callback_tensor_inputs`: "latents", "id_semantic_mask",
                "id_nuisance_mask", "ood_semantic_mask" (after the filter), "ood_unfiltered_mask" (before it),
                "noise_pred" (the guided prediction, as the scheduler takes it) and "guidance" (in units of noise,
                without s). Each is `[B, C, H, W]` in the order of the images. Images that have not joined yet have
                their noised latents, and zeros elsewhere.
            cross_attention_kwargs: passed on to the attention processors, whatever the denoiser calls them.
            timesteps, sigmas: the full schedule itself, from noise to image, for schedulers that take one of these;
                `num_inference_steps` is then how many there are.

        Raises:
            ValueError, TypeError: an argument breaks one of the rules above; before any model is run.
            FloatingPointError: the latents or the pixels of an image became NaN or infinite.
        """
        call_back = Callback(callback_on_step_end, callback_on_step_end_tensor_inputs)
        regions: dict[str, Any] = {
            "mask_threshold": mask_threshold,
            "mask_granularity": mask_granularity,
            "remove_id_semantics": remove_id_semantics,
            "preserve_id_nuisance": preserve_id_nuisance,
            "add_ood_semantics": add_ood_semantics,
            "filter_ood_by_nuisance": filter_ood_by_nuisance,
            "global_guidance": global_guidance,
        }
        prompts = {"id_prompt": id_prompt, "ood_prompt": ood_prompt}
        embeds = {"uncond_prompt": uncond_prompt_embeds, "id_prompt": id_prompt_embeds, "ood_prompt": ood_prompt_embeds}
        check_numbers(
            guidance_scale=guidance_scale, momentum_scale=momentum_scale, momentum_beta=momentum_beta, eta=eta
        )
        check_counts(warmup_steps=warmup_steps, cooldown_steps=cooldown_steps, clip_skip=clip_skip)
        num_inference_steps = steps_of(num_inference_steps, timesteps, sigmas)
        image, generator = self.check_inputs(
            image, prompts, embeds, regions, generator, num_inference_steps, output_type, call_back.names
        )
        stop_steps = self.get_stop_steps(len(image), strength, stop_step, num_inference_steps, generator)
        self._interrupt = False
        device = self._execution_device
        schedule = self.schedule_of(num_inference_steps, self.latent_shape(image), timesteps, sigmas)
        check_scheduler(self.scheduler, schedule)
        schedule.set(self.scheduler, device)

        lora_scale = (cross_attention_kwargs or {}).get("scale")
        conditions = self.encode_prompts(len(image), prompts, embeds, device, clip_skip, lora_scale)
        source = self.encode_image(image, device, generator)
        noise = randn_tensor(source.shape, generator=generator, device=device, dtype=source.dtype)
        joins = [(num_inference_steps - steps) * self.scheduler.order for steps in stop_steps]
        latents = noised(self.scheduler, source, noise, joins)
        batch = Batch(latents, conditions, joins, generator)
        sega = Sega(warmup_steps, cooldown_steps, momentum_scale, momentum_beta, source)

        with room_to_compile(self.denoiser):
            for step in self.denoising_steps(schedule, device, batch.joins):
                latents, conditions, generators = batch.take(step.active)
                predictions = self.predict_noise(latents, step.t, conditions, cross_attention_kwargs)
                found = sega(sona_guidance(*predictions, **regions), step)
                noise_pred = predictions[0] + guidance_scale * found.guidance
                extra = step_kwargs(self.scheduler, eta, generators)
                batch.put(self.scheduler.step(noise_pred, step.t, latents, **extra, return_dict=False)[0], step)
                call_back(self, step, batch, found, noise_pred)

        batch.raise_if_bad()
        images, nsfw_content_detected = self.decode(batch.in_caller_order(batch.latents), output_type)
        self.maybe_free_model_hooks()
        output = images, stop_steps, nsfw_content_detected
        return SONAPipelineOutput(*output) if return_dict else output

    def check_inputs(
        self,
        image: PipelineImageInput,
        prompts: Prompts,
        embeds: Embeds,
        regions: dict[str, Any],
        generator: torch.Generator | Sequence[torch.Generator] | None,
        num_inference_steps: int,
        output_type: str,
        callback_tensor_inputs: Sequence[str],
    ) -> tuple[torch.Tensor, Generators]:
        """The image as `preprocess_image` gives it, and the generator or a list of them.

        Raises ValueError or TypeError, naming value and rule, for arguments that `__call__` cannot work with.
        """
        self.check_parts()
        check_mask_options(regions["mask_threshold"], regions["mask_granularity"])
        tensor = self.preprocess_image(image)
        self.check_prompts(len(tensor), prompts, embeds)
        sources = checked_generators(generator, len(tensor))
        check_steps(num_inference_steps, self.scheduler.config.get("num_train_timesteps", num_inference_steps))
        check_output_type(output_type)
        if unknown := [name for name in callback_tensor_inputs if name not in self._callback_tensor_inputs]:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` has {unknown}, but can have {self._callback_tensor_inputs} only."
            )
        return tensor, sources

    def get_stop_steps(
        self,
        batch_size: int,
        strength: float | Sequence[float] | None,
        stop_step: int | Sequence[int] | None,
        num_inference_steps: int,
        generator: Generators = None,
    ) -> list[int]:
        """Stop step of every image: as given, `int(num_inference_steps * strength)`, or drawn from 1 .. T."""
        if strength is not None and stop_step is not None:
            raise ValueError("Give either `strength` or `stop_step`, and not both.")
        if strength is None and stop_step is None:
            sources = generator if isinstance(generator, list) else [generator] * batch_size
            return [draw_step(num_inference_steps, source) for source in sources]
        name, value = "strength" if stop_step is None else "stop_step", strength if stop_step is None else stop_step
        value = value.tolist() if isinstance(value, (np.ndarray, torch.Tensor)) else value
        values: list[Any] = list(value) if isinstance(value, Sequence) else [value] * batch_size
        if len(values) != batch_size:
            raise ValueError(f"`{name}` has {len(values)} entries for {batch_size} images: give one, or one an image.")
        if stop_step is None:
            return [step_of_strength(one, num_inference_steps) for one in values]
        if not all(
            isinstance(one, (int, np.integer)) and not isinstance(one, bool) and 1 <= one <= num_inference_steps
            for one in values
        ):
            raise ValueError(f"`stop_step` is {value}, but has to be made of integers from 1 to {num_inference_steps}.")
        return [int(one) for one in values]

    def latent_shape(self, image: torch.Tensor) -> torch.Size:
        """Shape `[B, C, H, W]` of the latents of images, or of latents, as `preprocess_image` gives them."""
        if image.shape[1] == self.latent_channels:
            return image.shape
        height, width = (side // self.latent_side for side in image.shape[2:])
        return torch.Size((len(image), self.latent_channels, height, width))

    def predict_noise(
        self, latents: torch.Tensor, t: torch.Tensor, conditions: Conditions, attention: dict | None = None
    ) -> tuple[torch.Tensor, ...]:
        """What the denoiser makes of latents `[B, C, H, W]` with each of the conditions `[3, B, ...]`, in one call.

        Conditions are in the denoiser's dtype, as `encode_prompts` gives them.
        """
        rows = seen_by_model(self.scheduler, torch.cat([latents] * 3), t).to(conditions["prompt_embeds"].dtype)
        flat = {name: value.flatten(0, 1) for name, value in conditions.items()}
        with self.sharing(len(rows)):
            predicted = self.denoise(rows, t, flat, attention)
        return predicted.to(latents.dtype).chunk(3)

    def denoising_steps(self, schedule: Schedule, device: torch.device, joins: list[int]) -> Iterator[Step]:
        """The steps t = T~ .. 1, one for each call of the denoiser, until a callback interrupts.

        Images, sorted by the index on the full schedule at which they join, share one run of a scheduler without
        history; with the others each stop step has a run of its own.
        """
        order, units = self.scheduler.order, noise_units(self.scheduler)
        share = type(self.scheduler).__name__ in SCHEDULERS_WITHOUT_HISTORY
        runs = [joins] if share else [list(run) for _, run in itertools.groupby(joins)]
        self._num_timesteps, first = sum(len(units) - run[0] for run in runs), 0
        with self.progress_bar(total=self._num_timesteps) as progress_bar:
            for run in runs:
                timesteps = schedule.set(self.scheduler, device, begin=run[0])
                for index in range(run[0], len(timesteps)):
                    if self.interrupt:
                        return
                    active = slice(first, first + sum(join <= index for join in run))
                    yield Step(index // order, timesteps[index], active, units[index])
                    progress_bar.update()
                first += len(run)


def room_to_compile(denoiser: torch.nn.Module) -> AbstractContextManager:
    """Let blocks that are compiled one by one be compiled for every width that they have, and for any batch size.

    It looks at all modules, which takes milliseconds: once a call, and not at every step.
    """
    if all(module._compiled_call_impl is None for module in denoiser.modules()):
        return nullcontext()
    import torch._dynamo.config as settings

    return settings.patch(recompile_limit=max(64, settings.recompile_limit))
