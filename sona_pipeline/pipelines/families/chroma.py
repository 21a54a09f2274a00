"""SONA with Chroma."""

from typing import Any

import torch
from diffusers import AutoencoderKL, ChromaTransformer2DModel, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.loaders import FluxLoraLoaderMixin, FromSingleFileMixin, TextualInversionLoaderMixin
from transformers import T5EncoderModel, T5TokenizerFast  # type: ignore[attr-defined]

from sona_pipeline.pipelines.batch import Conditions
from sona_pipeline.pipelines.flux_parts import FluxMixin, check_no_skip, image_positions
from sona_pipeline.pipelines.packing import packed, unpacked
from sona_pipeline.pipelines.schedules import Schedule, even
from sona_pipeline.pipelines.text_encoders import padded_tokens


class SONAChromaPipeline(
    FluxMixin, DiffusionPipeline, FluxLoraLoaderMixin, FromSingleFileMixin, TextualInversionLoaderMixin
):
    r"""Image-to-image pipeline that turns labelled images into semantic outliers with Chroma.

    Each image is noised up to a stop step of its own and denoised with `sona_guidance`, which removes the meaning of
    the ID prompt, keeps the image's nuisance and adds the meaning of the OOD prompt. Prompts are read up to the first
    token of their padding; the rest is masked.

    Args:
        scheduler ([`FlowMatchEulerDiscreteScheduler`]): the scheduler.
        vae ([`AutoencoderKL`]): encodes images to latents and back.
        text_encoder ([`~transformers.T5EncoderModel`]): gives a vector for each token of a prompt.
        tokenizer ([`~transformers.T5TokenizerFast`]): its tokenizer.
        transformer ([`ChromaTransformer2DModel`]): predicts velocity from tokens of 2 x 2 latents and a prompt.
    """

    title = "Chroma"
    checkpoints = ("ChromaPipeline", "ChromaImg2ImgPipeline")
    model_cpu_offload_seq = "text_encoder->transformer->vae"
    patch_size = 2

    def __init__(
        self,
        scheduler: FlowMatchEulerDiscreteScheduler,
        vae: AutoencoderKL,
        text_encoder: T5EncoderModel,
        tokenizer: T5TokenizerFast,
        transformer: ChromaTransformer2DModel,
    ):
        super().__init__()
        self.register_modules(
            scheduler=scheduler, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, transformer=transformer
        )
        self.check_parts()
        self._set_up_images(vae)

    def check_parts(self) -> None:
        """Raise ValueError, naming the part, unless these make Chroma."""
        widths = {"joint_attention_dim": (self.text_encoder, "d_model", 1)}
        self.check_flux(widths, self.title, own="approximator_layers")

    @property
    def condition_shapes(self) -> dict[str, tuple[int | None, ...]]:
        """The hidden states of T5, and which of them the transformer sees."""
        return {"prompt_embeds": (None, self.transformer.config.joint_attention_dim), "prompt_attention_mask": (None,)}

    @property
    def prompt_length(self) -> int:
        """Tokens that T5 reads: 512, as in training, or fewer if its tokenizer says so."""
        return min(512, self.tokenizer.model_max_length)

    def token_ids(self, texts: list[str]) -> list[list[int]]:
        """The tokens of texts, all of them."""
        return self.tokenizer(self.maybe_convert_prompt(texts, self.tokenizer), verbose=False).input_ids

    def encode_texts(self, texts: list[str], device: torch.device, clip_skip: int | None = None) -> Conditions:
        """Hidden states `[N, L, D]` of T5, and a mask `[N, L]` on the CPU: the prompt, and one token of its padding."""
        check_no_skip(clip_skip, self.title)
        given = self.maybe_convert_prompt(texts, self.tokenizer)
        tokens = padded_tokens(given, self.tokenizer, self.prompt_length)
        states = self.text_encoder(tokens.input_ids.to(device), tokens.attention_mask.to(device)).last_hidden_state
        seen = torch.arange(self.prompt_length) <= tokens.attention_mask.sum(dim=1, keepdim=True)
        return {"prompt_embeds": states, "prompt_attention_mask": seen}

    def trimmed(self, conditions: Conditions) -> Conditions:
        """Conditions `[P, B, L, ...]` up to what is seen of the longest prompt, all on the device of the states."""
        device = conditions["prompt_embeds"].device
        longest = int(conditions["prompt_attention_mask"].bool().sum(dim=-1).max())
        return {name: value[:, :, :longest].to(device) for name, value in conditions.items()}

    def schedule_of(self, steps: int, latents: torch.Size, timesteps: Any = None, sigmas: Any = None) -> Schedule:
        """Even steps, which the scheduler may shift."""
        return even(super().schedule_of(steps, latents, timesteps, sigmas))

    def denoise(self, rows: torch.Tensor, t: torch.Tensor, conditions: Conditions, attention: dict | None) -> Any:
        """Velocities.

        The mask is boolean. That of diffusers' own pipelines holds numbers, which attention adds to its scores, so that
        padding is seen.
        """
        height, width = rows.shape[2:]
        tokens, seen = packed(rows), conditions["prompt_attention_mask"].bool()
        positions = image_positions(height // 2, width // 2, rows.device)
        predicted = self.transformer(
            hidden_states=tokens,
            timestep=(t / self.scheduler.config.num_train_timesteps).expand(len(rows)),
            encoder_hidden_states=conditions["prompt_embeds"],
            txt_ids=positions.new_zeros(seen.shape[1], 3),
            img_ids=positions,
            attention_mask=torch.cat([seen, seen.new_ones(tokens.shape[:2])], dim=1),
            joint_attention_kwargs=attention,
            return_dict=False,
        )[0]
        return unpacked(predicted, height, width)
