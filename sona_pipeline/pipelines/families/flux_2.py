"""SONA with FLUX.2 [klein] base."""

from dataclasses import replace
from typing import Any

import torch
from diffusers import AutoencoderKLFlux2, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel
from diffusers.loaders import Flux2LoraLoaderMixin
from torch.nn.functional import pad, pixel_shuffle, pixel_unshuffle
from transformers import Qwen2TokenizerFast, Qwen3ForCausalLM  # type: ignore[attr-defined]

from sona_pipeline.pipelines.batch import Conditions
from sona_pipeline.pipelines.flux_parts import FluxMixin, check_no_skip, image_positions
from sona_pipeline.pipelines.schedules import Schedule, even


class SONAFlux2Pipeline(FluxMixin, DiffusionPipeline, Flux2LoraLoaderMixin):
    r"""Image-to-image pipeline that turns labelled images into semantic outliers with FLUX.2 [klein] base.

    Each image is noised up to a stop step of its own and denoised with `sona_guidance`. Latents are 2 x 2 of the
    autoencoder's, with four times its channels.

    Args:
        scheduler ([`FlowMatchEulerDiscreteScheduler`]): a scheduler that shifts its steps for the size of the images.
        vae ([`AutoencoderKLFlux2`]): encodes images to latents and back, and knows their means and variances.
        text_encoder ([`~transformers.Qwen3ForCausalLM`]): gives three vectors for each token of a prompt.
        tokenizer ([`~transformers.Qwen2TokenizerFast`]): its tokenizer, with a chat template.
        transformer ([`Flux2Transformer2DModel`]): predicts velocity from latents and a prompt.
        is_distilled (`bool`): whether the model is distilled to few steps without guidance, which is refused.
    """

    title = "FLUX.2 [klein] base"
    checkpoints = ("Flux2KleinPipeline",)
    model_cpu_offload_seq = "text_encoder->transformer->vae"
    draws_latents = False
    text_layers = (9, 18, 27)
    """Layers of the text encoder that the transformer reads."""

    def __init__(
        self,
        scheduler: FlowMatchEulerDiscreteScheduler,
        vae: AutoencoderKLFlux2,
        text_encoder: Qwen3ForCausalLM,
        tokenizer: Qwen2TokenizerFast,
        transformer: Flux2Transformer2DModel,
        is_distilled: bool = False,
    ):
        super().__init__()
        self.register_modules(
            scheduler=scheduler, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, transformer=transformer
        )
        self.register_to_config(is_distilled=is_distilled)
        self.check_parts()
        self._set_up_images(vae)

    def check_parts(self) -> None:
        """Raise ValueError, naming the part, unless these make FLUX.2 [klein] base."""
        good, last = self.title, self.text_layers[-1]
        takes_guidance = self.transformer is not None and self.transformer.config.get("guidance_embeds")
        if self.config.is_distilled or takes_guidance:
            why = "take the guidance scale (guidance_embeds" if takes_guidance else "few steps (is_distilled"
            raise ValueError(f"The model is distilled to {why} True) instead of guidance by two prompts: take {good}.")
        if self.vae is not None and not hasattr(self.vae, "bn"):
            raise ValueError(f"`vae` is a {type(self.vae).__name__} without means of its latents: take that of {good}.")
        layers = last if self.text_encoder is None else getattr(self.text_encoder.config, "num_hidden_layers", 0)
        if layers < last:
            raise ValueError(f"The text encoder has {layers} layers, and layer {last} is read: take that of {good}.")
        self.check_flux({"joint_attention_dim": (self.text_encoder, "hidden_size", len(self.text_layers))}, good)

    @property
    def text_encoders(self) -> list[Any]:
        """Qwen3."""
        return [self.text_encoder]

    @property
    def condition_shapes(self) -> dict[str, tuple[int | None, ...]]:
        """The hidden states of three layers."""
        return {"prompt_embeds": (None, self.transformer.config.joint_attention_dim)}

    @property
    def prompt_length(self) -> int:
        """Tokens that are read, those of the chat template among them."""
        return min(512, self.tokenizer.model_max_length)

    def as_chat(self, texts: list[str]) -> list[str]:
        """Texts as what a user says, and the beginning of an answer without thoughts."""
        chats = [[{"role": "user", "content": text}] for text in texts]
        how = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
        return [self.tokenizer.apply_chat_template(chat, **how) for chat in chats]

    def token_ids(self, texts: list[str]) -> list[list[int]]:
        """The tokens of texts with the chat template, all of them."""
        return self.tokenizer(self.as_chat(texts), verbose=False).input_ids

    def encode_texts(self, texts: list[str], device: torch.device, clip_skip: int | None = None) -> Conditions:
        """Hidden states `[N, L, 3 D]` of three layers side by side; those of the padding are read, too."""
        check_no_skip(clip_skip, self.title)
        settings = {"padding": "max_length", "max_length": self.prompt_length, "truncation": True}
        inputs = self.tokenizer(self.as_chat(texts), **settings, return_tensors="pt").to(device)
        wanted = {"output_hidden_states": True, "use_cache": False, "logits_to_keep": 1}
        states = self.text_encoder(inputs.input_ids, inputs.attention_mask, **wanted).hidden_states
        return {"prompt_embeds": torch.cat([states[layer] for layer in self.text_layers], dim=-1)}

    @property
    def latent_channels(self) -> int:
        """Channels of the latents, each for 2 x 2 of the autoencoder."""
        return 4 * self.vae.config.latent_channels

    @property
    def latent_side(self) -> int:
        """Pixels a side that one latent stands for."""
        return 2 * self.vae_scale_factor

    def statistics(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Means and standard deviations `[1, C, 1, 1]` of latents."""
        known = self.vae.bn
        mean, variance = (one.to(latents).view(1, -1, 1, 1) for one in (known.running_mean, known.running_var))
        return mean, (variance + known.eps).sqrt()

    def scaled(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents `[B, C, H, W]` of the autoencoder as `[B, 4 C, H / 2, W / 2]`, normalised."""
        mean, deviation = self.statistics(latents)
        return (pixel_unshuffle(latents, 2) - mean) / deviation

    def unscaled(self, latents: torch.Tensor) -> torch.Tensor:
        """The opposite of `scaled`."""
        mean, deviation = self.statistics(latents)
        return pixel_shuffle(latents * deviation + mean, 2)

    def schedule_of(self, steps: int, latents: torch.Size, timesteps: Any = None, sigmas: Any = None) -> Schedule:
        """Even steps, shifted the more, the more latents there are; lines fitted at 10 and 200 steps say how far."""
        tokens = latents[2] * latents[3]
        few, many = 8.73809524e-05 * tokens + 1.89833333, 0.00016927 * tokens + 0.45666666
        mu = many if tokens > 4300 else few + (many - few) * (steps - 10) / 190
        return replace(even(super().schedule_of(steps, latents, timesteps, sigmas)), mu=mu)

    def denoise(self, rows: torch.Tensor, t: torch.Tensor, conditions: Conditions, attention: dict | None) -> Any:
        """Velocities; positions are time, row, column and place in the prompt."""
        height, width = rows.shape[2:]
        words = torch.arange(conditions["prompt_embeds"].shape[1], device=rows.device)
        predicted = self.transformer(
            hidden_states=rows.flatten(2).transpose(1, 2),
            encoder_hidden_states=conditions["prompt_embeds"],
            timestep=(t / self.scheduler.config.num_train_timesteps).expand(len(rows)),
            img_ids=pad(image_positions(height, width, rows.device), (0, 1)),
            txt_ids=pad(words[:, None], (3, 0)),
            joint_attention_kwargs=attention,
            return_dict=False,
        )[0]
        return predicted.transpose(1, 2).unflatten(2, (height, width))
