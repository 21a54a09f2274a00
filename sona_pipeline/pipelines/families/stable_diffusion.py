"""SONA with Stable Diffusion 1.x and 2.x."""

from contextlib import AbstractContextManager
from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
from diffusers.loaders import FromSingleFileMixin, StableDiffusionLoraLoaderMixin, TextualInversionLoaderMixin
from diffusers.pipelines.pipeline_utils import StableDiffusionMixin
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from diffusers.schedulers import KarrasDiffusionSchedulers
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer

from sona_pipeline.pipelines.batch import Conditions
from sona_pipeline.pipelines.core import SONAMixin
from sona_pipeline.pipelines.schedules import check_scheduler_kind, usable_scheduler
from sona_pipeline.pipelines.text_encoders import check_width, padded_tokens, prompt_length, states_before
from sona_pipeline.pipelines.unets import (
    UNetMixin,
    before_prompts,
    check_unet,
    check_vae,
    computed_once,
    prompt_width,
)


class SONAPipeline(
    UNetMixin,
    SONAMixin,
    DiffusionPipeline,
    StableDiffusionMixin,
    TextualInversionLoaderMixin,
    StableDiffusionLoraLoaderMixin,
    FromSingleFileMixin,
):
    r"""Image-to-image pipeline that turns labelled images into semantic outliers with Stable Diffusion 1.x or 2.x.

    Each image is noised up to a stop step of its own and denoised with `sona_guidance`, which removes the meaning of
    the ID prompt, keeps the image's nuisance and adds the meaning of the OOD prompt. A PNDM scheduler, which most
    checkpoints ship, is replaced by DDIM with the same noise schedule.

    Args:
        vae ([`AutoencoderKL`]): encodes images to latents and back.
        text_encoder ([`~transformers.CLIPTextModel`]): frozen text encoder.
        tokenizer ([`~transformers.CLIPTokenizer`]): its tokenizer.
        unet ([`UNet2DConditionModel`]): predicts noise, velocity or sample from latents and prompt.
        scheduler ([`SchedulerMixin`]): any scheduler of Stable Diffusion but PNDM; DDIM is the paper's.
        safety_checker ([`StableDiffusionSafetyChecker`], *optional*): flags and blanks harmful images.
        feature_extractor ([`~transformers.CLIPImageProcessor`], *optional*): prepares images for the safety checker.
        requires_safety_checker (`bool`): kept for checkpoints that carry the setting.
    """

    title = "Stable Diffusion 1.x and 2.x"
    checkpoints = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")
    file_parts = {"UNet": "model.diffusion_model.", "VAE": "first_stage_model.", "text encoder": "cond_stage_model."}
    model_cpu_offload_seq = "text_encoder->unet->vae"
    _optional_components = ["safety_checker", "feature_extractor"]
    _exclude_from_cpu_offload = ["safety_checker"]

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: KarrasDiffusionSchedulers,
        safety_checker: StableDiffusionSafetyChecker = None,
        feature_extractor: CLIPImageProcessor = None,  # type: ignore[assignment] # the form that `from_pipe` matches
        requires_safety_checker: bool = False,
    ):
        super().__init__()
        check_components(vae, text_encoder, tokenizer, unet, scheduler)
        if safety_checker is not None and feature_extractor is None:
            raise ValueError("`safety_checker` needs a `feature_extractor`: pass both, or `safety_checker=None`.")
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=usable_scheduler(scheduler),
            safety_checker=safety_checker,
            feature_extractor=feature_extractor,
        )
        self.register_to_config(requires_safety_checker=requires_safety_checker)
        self._set_up_images(vae)

    def check_parts(self) -> None:
        """See `check_components`."""
        check_components(self.vae, self.text_encoder, self.tokenizer, self.unet, self.scheduler)

    @property
    def condition_shapes(self) -> dict[str, tuple[int | None, ...]]:
        """The last hidden states."""
        return {"prompt_embeds": (None, prompt_width(self.unet))}

    def encode_texts(self, texts: list[str], device: torch.device, clip_skip: int | None = None) -> Conditions:
        """Hidden states `[N, L, D]` of the last layer, or of the one `clip_skip` layers before it."""
        texts = self.maybe_convert_prompt(texts, self.tokenizer)
        inputs = padded_tokens(texts, self.tokenizer, self.prompt_length)
        use_mask = getattr(self.text_encoder.config, "use_attention_mask", False)
        outputs = self.text_encoder(
            inputs.input_ids.to(device),
            attention_mask=inputs.attention_mask.to(device) if use_mask else None,
            output_hidden_states=clip_skip is not None,
        )
        if clip_skip is None:
            return {"prompt_embeds": outputs[0]}
        encoder: Any = getattr(self.text_encoder, "text_model", self.text_encoder)
        return {"prompt_embeds": encoder.final_layer_norm(states_before(outputs.hidden_states, 0, clip_skip))}

    def sharing(self, rows: int) -> AbstractContextManager:
        """Up to the first cross-attention the three rows of an image are alike, and computed once."""
        return computed_once(before_prompts(self.unet), rows)

    def denoise(self, rows: torch.Tensor, t: torch.Tensor, conditions: Conditions, attention: dict | None) -> Any:
        """What the UNet predicts."""
        return self.unet(
            rows,
            t,
            encoder_hidden_states=conditions["prompt_embeds"],
            cross_attention_kwargs=attention,
            return_dict=False,
        )[0]

    def blanked(self, images: torch.Tensor) -> tuple[torch.Tensor, list[bool] | None]:
        """Images without those that the safety checker finds harmful, and its flags."""
        if self.safety_checker is None:
            return images, None
        shown = self.image_processor.postprocess(images, output_type="pil")
        features = self.feature_extractor(shown, return_tensors="pt").to(images.device)
        return self.safety_checker(images=images, clip_input=features.pixel_values.to(self.safety_checker.dtype))


def check_components(vae: Any, text_encoder: Any, tokenizer: Any, unet: Any, scheduler: Any) -> None:
    """Raise ValueError, naming the component, unless these make a Stable Diffusion model for text and images.

    A component that is None is left out.
    """
    if scheduler is not None:
        check_scheduler_kind(scheduler)
    if unet is not None:
        check_unet(unet)
    if vae is not None:
        check_vae(vae, unet)
    if text_encoder is not None and unet is not None:
        width = getattr(text_encoder.config, "hidden_size", None)
        check_width("The text encoder", width, "UNet", prompt_width(unet))
    if text_encoder is not None and tokenizer is not None:
        prompt_length(tokenizer, text_encoder)
