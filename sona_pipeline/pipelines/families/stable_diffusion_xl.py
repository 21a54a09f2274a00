"""SONA with Stable Diffusion XL."""

from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
from diffusers.loaders import FromSingleFileMixin, StableDiffusionXLLoraLoaderMixin, TextualInversionLoaderMixin
from diffusers.pipelines.pipeline_utils import StableDiffusionMixin
from diffusers.schedulers import KarrasDiffusionSchedulers
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from sona_pipeline.pipelines.batch import Conditions
from sona_pipeline.pipelines.core import SONAMixin
from sona_pipeline.pipelines.schedules import check_scheduler_kind, usable_scheduler
from sona_pipeline.pipelines.text_encoders import states_and_outputs
from sona_pipeline.pipelines.unets import SIZE_NUMBERS, UNetMixin, check_unet, check_vae, pooled_width, prompt_width


class SONAXLPipeline(
    UNetMixin,
    SONAMixin,
    DiffusionPipeline,
    StableDiffusionMixin,
    TextualInversionLoaderMixin,
    StableDiffusionXLLoraLoaderMixin,
    FromSingleFileMixin,
):
    r"""Image-to-image pipeline that turns labelled images into semantic outliers with Stable Diffusion XL.

    Each image is noised up to a stop step of its own and denoised with `sona_guidance`. The UNet is told that images
    have the size that they have, and are not cropped.

    Args:
        vae ([`AutoencoderKL`]): encodes images to latents and back.
        text_encoder ([`~transformers.CLIPTextModel`]): first frozen text encoder.
        text_encoder_2 ([`~transformers.CLIPTextModelWithProjection`]): second one, which also pools.
        tokenizer ([`~transformers.CLIPTokenizer`]): tokenizer of the first.
        tokenizer_2 ([`~transformers.CLIPTokenizer`]): tokenizer of the second.
        unet ([`UNet2DConditionModel`]): predicts noise, velocity or sample from latents, prompt and size.
        scheduler ([`SchedulerMixin`]): any scheduler of Stable Diffusion but PNDM, which becomes DDIM.
        requires_aesthetics_score (`bool`): kept for checkpoints that carry the setting; refiners are refused.
        force_zeros_for_empty_prompt (`bool`): the empty prompt is zeros, as in most checkpoints.
    """

    title = "Stable Diffusion XL"
    checkpoints = ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline")
    file_parts = {
        "UNet": "model.diffusion_model.",
        "VAE": "first_stage_model.",
        "second text encoder": "conditioner.embedders.1.",
    }
    model_cpu_offload_seq = "text_encoder->text_encoder_2->unet->vae"
    _optional_components = ["tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2"]

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        text_encoder_2: CLIPTextModelWithProjection,
        tokenizer: CLIPTokenizer,
        tokenizer_2: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: KarrasDiffusionSchedulers,
        requires_aesthetics_score: bool = False,
        force_zeros_for_empty_prompt: bool = True,
    ):
        super().__init__()
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            text_encoder_2=text_encoder_2,
            tokenizer=tokenizer,
            tokenizer_2=tokenizer_2,
            unet=unet,
            scheduler=usable_scheduler(scheduler),
        )
        self.register_to_config(
            requires_aesthetics_score=requires_aesthetics_score,
            force_zeros_for_empty_prompt=force_zeros_for_empty_prompt,
        )
        self.check_parts()
        self._set_up_images(vae)

    def check_parts(self) -> None:
        """Raise ValueError, naming the part, unless the components make a base model of Stable Diffusion XL."""
        base = "take the base checkpoint"
        missing = [name for name in ("text_encoder", "text_encoder_2") if getattr(self, name) is None]
        if self.config.requires_aesthetics_score or missing == ["text_encoder"]:
            raise ValueError(f"This is a refiner of Stable Diffusion XL, which takes one text encoder alone: {base}.")
        if missing == ["text_encoder_2"]:
            raise ValueError(f"`text_encoder_2` is missing, and the UNet takes prompts from two: {base}.")
        if self.scheduler is not None:
            check_scheduler_kind(self.scheduler)
        if self.unet is not None:
            check_unet(self.unet, addition="text_time")
        if self.vae is not None:
            check_vae(self.vae, self.unet)
            if self.vae.config.get("latents_mean") is not None:
                raise ValueError(f"The VAE has latents_mean, as in Playground 2.5, whose noise is another: {base}.")
        if self.unet is not None and not missing:
            self._check_widths(base)

    def _check_widths(self, base: str) -> None:
        config, taken = self.text_encoder_2.config, (prompt_width(self.unet), pooled_width(self.unet))
        width = self.text_encoder.config.hidden_size + config.hidden_size
        if not hasattr(self.text_encoder_2, "text_projection") or (width, config.projection_dim) != taken:
            raise ValueError(
                f"The text encoders give embeddings of width {width} and pool to {config.projection_dim}, and the UNet"
                f" takes {taken[0]} and {taken[1]}: {base} with its `CLIPTextModelWithProjection`."
            )

    @property
    def condition_shapes(self) -> dict[str, tuple[int | None, ...]]:
        """Hidden states of both encoders side by side, and what the second pools."""
        return {"prompt_embeds": (None, prompt_width(self.unet)), "pooled_prompt_embeds": (pooled_width(self.unet),)}

    def encode_texts(self, texts: list[str], device: torch.device, clip_skip: int | None = None) -> Conditions:
        """Hidden states `[N, L, D]` before the last layers, and pooled ones `[N, P]`; zeros for the empty text."""
        states = []
        for tokenizer, encoder in ((self.tokenizer, self.text_encoder), (self.tokenizer_2, self.text_encoder_2)):
            converted = self.maybe_convert_prompt(texts, tokenizer)
            found, outputs = states_and_outputs(converted, tokenizer, encoder, device, clip_skip)
            states.append(found)
        embeds, pooled = torch.cat(states, dim=-1), outputs.text_embeds
        if self.config.force_zeros_for_empty_prompt:
            empty = [k for k, text in enumerate(texts) if not text]
            embeds[empty], pooled[empty] = 0, 0
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def denoise(self, rows: torch.Tensor, t: torch.Tensor, conditions: Conditions, attention: dict | None) -> Any:
        """What the UNet predicts for images of the size of the rows."""
        sizes = rows.new_zeros(len(rows), SIZE_NUMBERS, dtype=torch.float32)
        sizes[:, 0::4], sizes[:, 1::4] = (side * self.vae_scale_factor for side in rows.shape[-2:])
        return self.unet(
            rows,
            t,
            encoder_hidden_states=conditions["prompt_embeds"],
            added_cond_kwargs={"text_embeds": conditions["pooled_prompt_embeds"], "time_ids": sizes},
            cross_attention_kwargs=attention,
            return_dict=False,
        )[0]
