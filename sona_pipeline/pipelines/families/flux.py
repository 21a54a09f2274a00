"""SONA with FLUX.1 [dev]."""

from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from diffusers.loaders import FluxLoraLoaderMixin, FromSingleFileMixin, TextualInversionLoaderMixin
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast  # type: ignore[attr-defined]

from sona_pipeline.pipelines.batch import Conditions
from sona_pipeline.pipelines.flux_parts import FluxMixin, check_no_skip, image_positions
from sona_pipeline.pipelines.packing import packed, unpacked
from sona_pipeline.pipelines.schedules import Schedule, even
from sona_pipeline.pipelines.text_encoders import prompt_length


class SONAFluxPipeline(
    FluxMixin, DiffusionPipeline, FluxLoraLoaderMixin, FromSingleFileMixin, TextualInversionLoaderMixin
):
    r"""Image-to-image pipeline that turns labelled images into semantic outliers with FLUX.1 [dev] and its kin.

    Each image is noised up to a stop step of its own and denoised with `sona_guidance`, which removes the meaning of
    the ID prompt, keeps the image's nuisance and adds the meaning of the OOD prompt. The empty prompt is a row of its
    own, whatever guidance the model was distilled to take.

    Args:
        scheduler ([`FlowMatchEulerDiscreteScheduler`]): a scheduler that shifts its steps for the size of the images.
        vae ([`AutoencoderKL`]): encodes images to latents and back.
        text_encoder ([`~transformers.CLIPTextModel`]): gives a vector for a prompt.
        tokenizer ([`~transformers.CLIPTokenizer`]): its tokenizer.
        text_encoder_2 ([`~transformers.T5EncoderModel`]): gives a vector for each token of a prompt.
        tokenizer_2 ([`~transformers.T5TokenizerFast`]): its tokenizer.
        transformer ([`FluxTransformer2DModel`]): predicts velocity from tokens of 2 x 2 latents and a prompt.
    """

    title = "FLUX.1 [dev]"
    checkpoints = ("FluxPipeline", "FluxImg2ImgPipeline")
    model_cpu_offload_seq = "text_encoder->text_encoder_2->transformer->vae"
    patch_size = 2
    distilled_guidance = 1.0
    """The guidance scale that a guidance-distilled model takes as an input; 1 leaves all guidance to SONA's."""

    def __init__(
        self,
        scheduler: FlowMatchEulerDiscreteScheduler,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        text_encoder_2: T5EncoderModel,
        tokenizer_2: T5TokenizerFast,
        transformer: FluxTransformer2DModel,
    ):
        super().__init__()
        self.register_modules(
            scheduler=scheduler,
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            text_encoder_2=text_encoder_2,
            tokenizer_2=tokenizer_2,
            transformer=transformer,
        )
        self.check_parts()
        self._set_up_images(vae)

    def check_parts(self) -> None:
        """Raise ValueError, naming the part, unless these make FLUX.1 with guidance."""
        clip, t5 = (self.text_encoder, "hidden_size", 1), (self.text_encoder_2, "d_model", 1)
        self.check_flux({"pooled_projection_dim": clip, "joint_attention_dim": t5}, "FLUX.1 [dev]")
        is_shifted = self.scheduler is None or self.scheduler.config.get("use_dynamic_shifting")
        if self.transformer is not None and not self.transformer.config.guidance_embeds and not is_shifted:
            raise ValueError(
                "The transformer takes no guidance (guidance_embeds False) and the scheduler does not shift its steps"
                " for the size of images (use_dynamic_shifting False), as in FLUX.1 [schnell], which is distilled to"
                " four steps without guidance: take FLUX.1 [dev]."
            )
        if self.text_encoder is not None and self.tokenizer is not None:
            prompt_length(self.tokenizer, self.text_encoder)

    @property
    def text_encoders(self) -> list[Any]:
        """CLIP and T5."""
        return [encoder for encoder in (self.text_encoder, self.text_encoder_2) if encoder is not None]

    @property
    def condition_shapes(self) -> dict[str, tuple[int | None, ...]]:
        """The hidden states of T5, and the vector of CLIP."""
        config = self.transformer.config
        return {
            "prompt_embeds": (None, config.joint_attention_dim),
            "pooled_prompt_embeds": (config.pooled_projection_dim,),
        }

    @property
    def prompt_length(self) -> int:
        """Tokens that T5 reads: 512, as in training, or fewer if its tokenizer says so."""
        return min(512, self.tokenizer_2.model_max_length)

    def token_ids(self, texts: list[str]) -> list[list[int]]:
        """The tokens of texts for T5, all of them."""
        return self.tokenizer_2(self.maybe_convert_prompt(texts, self.tokenizer_2), verbose=False).input_ids

    def encode_texts(self, texts: list[str], device: torch.device, clip_skip: int | None = None) -> Conditions:
        """Hidden states `[N, L, D]` of T5, which reads the padding, too, as in training, and vectors of CLIP."""
        check_no_skip(clip_skip, self.title)

        def read(tokenizer: Any, encoder: Any, length: int) -> Any:
            given = self.maybe_convert_prompt(texts, tokenizer)
            inputs = tokenizer(given, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
            return encoder(inputs.input_ids.to(device))

        clip = read(self.tokenizer, self.text_encoder, prompt_length(self.tokenizer, self.text_encoder))
        t5 = read(self.tokenizer_2, self.text_encoder_2, self.prompt_length)
        return {"prompt_embeds": t5.last_hidden_state, "pooled_prompt_embeds": clip.pooler_output}

    def schedule_of(self, steps: int, latents: torch.Size, timesteps: Any = None, sigmas: Any = None) -> Schedule:
        """Even steps, which the scheduler shifts the more, the larger the images are."""
        return even(super().schedule_of(steps, latents, timesteps, sigmas))

    def denoise(self, rows: torch.Tensor, t: torch.Tensor, conditions: Conditions, attention: dict | None) -> Any:
        """Velocities."""
        height, width = rows.shape[2:]
        positions = image_positions(height // 2, width // 2, rows.device)
        guidance = torch.full((len(rows),), self.distilled_guidance, device=rows.device)
        predicted = self.transformer(
            hidden_states=packed(rows),
            timestep=(t / self.scheduler.config.num_train_timesteps).expand(len(rows)),
            guidance=guidance if self.transformer.config.guidance_embeds else None,
            pooled_projections=conditions["pooled_prompt_embeds"],
            encoder_hidden_states=conditions["prompt_embeds"],
            txt_ids=positions.new_zeros(conditions["prompt_embeds"].shape[1], 3),
            img_ids=positions,
            joint_attention_kwargs=attention,
            return_dict=False,
        )[0]
        return unpacked(predicted, height, width)
