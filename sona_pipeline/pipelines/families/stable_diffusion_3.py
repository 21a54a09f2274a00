"""SONA with Stable Diffusion 3 and 3.5."""

from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from diffusers.loaders import FromSingleFileMixin, SD3LoraLoaderMixin
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from sona_pipeline.pipelines.batch import Conditions
from sona_pipeline.pipelines.core import SONAMixin
from sona_pipeline.pipelines.schedules import check_scheduler_kind
from sona_pipeline.pipelines.text_encoders import check_width, padded_tokens, prompt_length, states_and_outputs
from sona_pipeline.pipelines.unets import check_vae

NEEDED = ("joint_attention_dim", "pooled_projection_dim", "pos_embed_max_size")
CLIP_LENGTH, T5_LENGTH = 77, 256
"""Tokens of a prompt that the transformer is given, also where a text encoder is not there."""


class SONASD3Pipeline(SONAMixin, DiffusionPipeline, SD3LoraLoaderMixin, FromSingleFileMixin):
    r"""Image-to-image pipeline that turns labelled images into semantic outliers with Stable Diffusion 3 or 3.5.

    Text encoders may be left out, all but one; the transformer gets zeros for them.

    Args:
        transformer ([`SD3Transformer2DModel`]): predicts velocities from latents and prompt.
        scheduler ([`FlowMatchEulerDiscreteScheduler`]): its schedule, shifted or shifting with the size of the images.
        vae ([`AutoencoderKL`]): encodes images to latents and back.
        text_encoder, text_encoder_2 ([`~transformers.CLIPTextModelWithProjection`], *optional*): frozen text encoders.
        text_encoder_3 ([`~transformers.T5EncoderModel`], *optional*): third one; tokenizers have the same numbers.
    """

    title = "Stable Diffusion 3 and 3.5"
    checkpoints = ("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline")
    model_cpu_offload_seq = "text_encoder->text_encoder_2->text_encoder_3->transformer->vae"
    _optional_components = [f"{name}{k}" for name in ("text_encoder", "tokenizer") for k in ("", "_2", "_3")]

    def __init__(
        self,
        transformer: SD3Transformer2DModel,
        scheduler: FlowMatchEulerDiscreteScheduler,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModelWithProjection,
        tokenizer: CLIPTokenizer,
        text_encoder_2: CLIPTextModelWithProjection,
        tokenizer_2: CLIPTokenizer,
        text_encoder_3: T5EncoderModel,
        tokenizer_3: T5Tokenizer,
    ):
        super().__init__()
        self.register_modules(
            transformer=transformer,
            scheduler=scheduler,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            text_encoder_2=text_encoder_2,
            tokenizer_2=tokenizer_2,
            text_encoder_3=text_encoder_3,
            tokenizer_3=tokenizer_3,
        )
        self.check_parts()
        self._set_up_images(vae)
        self.patch_size = 2 if transformer is None else transformer.config.patch_size
        self.largest_side = None if transformer is None else transformer.config.pos_embed_max_size

    @property
    def denoiser(self) -> Any:
        """The transformer."""
        return self.transformer

    @property
    def image_size(self) -> int:
        """Side in pixels of the images that the transformer was made for."""
        return self.transformer.config.sample_size * self.vae_scale_factor

    def check_parts(self) -> None:
        """Raise ValueError, naming the part, unless the components make a plain model of Stable Diffusion 3."""
        taken = f"take the plain text-to-image checkpoint of {self.title}"
        if self.scheduler is not None:
            check_scheduler_kind(self.scheduler, is_flow=True)
        if self.transformer is not None:
            config, kind = self.transformer.config, type(self.transformer).__name__
            if missing := [name for name in NEEDED if not config.get(name)]:
                raise ValueError(f"`transformer` is a {kind} without {missing[0]!r}: {taken}.")
            if config.in_channels != self.transformer.out_channels:
                raise ValueError(f"The transformer takes {config.in_channels} channels, and so masks, too: {taken}.")
            self._check_widths(config.pooled_projection_dim, config.joint_attention_dim)
        if self.vae is not None:
            check_vae(self.vae, self.transformer, "transformer")

    def _check_widths(self, pooled: int, joint: int) -> None:
        clips = [encoder.config for _, encoder in self._clips if encoder is not None]
        width, states = sum(one.projection_dim for one in clips), sum(one.hidden_size for one in clips)
        if width != states or width > pooled or (len(clips) == 2 and width < pooled):
            raise ValueError(
                f"CLIP encoders give {states} numbers, pool to {width}; the transformer takes {pooled}: take one's."
            )
        if self.text_encoder_3 is not None:
            check_width("`text_encoder_3`", self.text_encoder_3.config.d_model, "transformer", joint)

    @property
    def _clips(self) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
        return (self.tokenizer, self.text_encoder), (self.tokenizer_2, self.text_encoder_2)

    @property
    def _clip_length(self) -> int:
        return next((prompt_length(*clip) for clip in self._clips if clip[1] is not None), CLIP_LENGTH)

    @property
    def condition_shapes(self) -> dict[str, tuple[int | None, ...]]:
        """Hidden states of the CLIP text encoders side by side, then those of T5, and what the former pool."""
        joint, pooled = (self.transformer.config[name] for name in NEEDED[:2])
        return {"prompt_embeds": (None, joint), "pooled_prompt_embeds": (pooled,)}

    @property
    def prompt_length(self) -> int:
        """Tokens that the third text encoder reads, or else the others."""
        return self._clip_length if self.text_encoder_3 is None else T5_LENGTH

    @property
    def encoded_length(self) -> int:
        """Tokens of both kinds, whether the text encoders are there or not."""
        return self._clip_length + T5_LENGTH

    def token_ids(self, texts: list[str]) -> list[list[int]]:
        """The tokens of texts for the text encoder that reads most, all of them."""
        parts = (self.tokenizer_3, self.text_encoder_3), *self._clips
        return next(one for one, encoder in parts if encoder is not None)(texts, verbose=False).input_ids

    def encode_texts(self, texts: list[str], device: torch.device, clip_skip: int | None = None) -> Conditions:
        """Hidden states `[N, L, D]` and pooled ones `[N, P]`, with zeros for text encoders that are not there."""
        length, joint, width = self._clip_length, *(self.transformer.config[name] for name in NEEDED[:2])
        empty = torch.zeros(len(texts), 1, 1, device=device, dtype=self.transformer.dtype)
        embeds, pooled = empty.repeat(1, self.encoded_length, joint), empty[:, 0].repeat(1, width)
        for k, (tokenizer, encoder) in enumerate(self._clips):
            if encoder is not None:
                states, outputs = states_and_outputs(texts, tokenizer, encoder, device, clip_skip)
                own = slice(width - states.shape[-1], width) if k else slice(states.shape[-1])
                embeds[:, :length, own], pooled[:, own] = states, outputs.text_embeds
        if self.text_encoder_3 is not None:
            tokens = padded_tokens(texts, self.tokenizer_3, T5_LENGTH)
            embeds[:, length:] = self.text_encoder_3(tokens.input_ids.to(device))[0]
        return {"prompt_embeds": embeds, "pooled_prompt_embeds": pooled}

    def denoise(self, rows: torch.Tensor, t: torch.Tensor, conditions: Conditions, attention: dict | None) -> Any:
        """What the transformer predicts."""
        given = conditions["prompt_embeds"], conditions["pooled_prompt_embeds"], t.expand(len(rows))
        return self.transformer(rows, *given, joint_attention_kwargs=attention, return_dict=False)[0]
