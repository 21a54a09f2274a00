"""SONA with Z-Image."""

from typing import Any

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel
from diffusers.loaders import FromSingleFileMixin, ZImageLoraLoaderMixin
from transformers import AutoTokenizer, PreTrainedModel

from sona_pipeline.pipelines.batch import Conditions
from sona_pipeline.pipelines.core import SONAMixin
from sona_pipeline.pipelines.qwen import QwenMixin

TURBO_SHIFT = 3.0
"""Shift of the steps of Z-Image-Turbo, which is the only thing that its configuration has otherwise than Z-Image's."""


class SONAZImagePipeline(QwenMixin, SONAMixin, DiffusionPipeline, ZImageLoraLoaderMixin, FromSingleFileMixin):
    r"""Image-to-image pipeline that turns labelled images into semantic outliers with Z-Image.

    Each image is noised up to a stop step of its own and denoised with `sona_guidance`, which removes the meaning of
    the ID prompt, keeps the image's nuisance and adds the meaning of the OOD prompt. Prompts of a batch have lengths
    of their own, so that none is changed by the others.

    Args:
        scheduler ([`FlowMatchEulerDiscreteScheduler`]): the scheduler.
        vae ([`AutoencoderKL`]): encodes images to latents and back.
        text_encoder ([`~transformers.PreTrainedModel`]): a Qwen3 model, whose last but one hidden states are taken.
        tokenizer ([`~transformers.AutoTokenizer`]): its tokenizer, with a chat template.
        transformer ([`ZImageTransformer2DModel`]): predicts velocity from latents and prompt.
    """

    title = "Z-Image"
    checkpoints = ("ZImagePipeline", "ZImageImg2ImgPipeline")
    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components: list[str] = []
    layer = -2

    def __init__(
        self,
        scheduler: FlowMatchEulerDiscreteScheduler,
        vae: AutoencoderKL,
        text_encoder: PreTrainedModel,
        tokenizer: AutoTokenizer,
        transformer: ZImageTransformer2DModel,
    ):
        super().__init__()
        self.register_modules(
            vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=scheduler, transformer=transformer
        )
        self.check_parts()
        self._set_up_images(vae)

    @property
    def prompt_width(self) -> int:
        """Width of the captions that the transformer takes."""
        return self.transformer.config.cap_feat_dim

    def check_parts(self) -> None:
        """Raise ValueError, naming the part, unless these make Z-Image, which is not distilled and takes text only."""
        is_there = self.transformer is not None
        config = self.transformer.config if is_there else {}
        if missing := [name for name in ("cap_feat_dim", "in_channels") if is_there and name not in config]:
            raise ValueError(
                f"`transformer` is a {type(self.transformer).__name__} without {missing[0]!r}: take Z-Image."
            )
        if config.get("siglip_feat_dim") is not None:
            raise ValueError(
                f"The transformer takes features of images to edit, too (siglip_feat_dim {config['siglip_feat_dim']},"
                " as in Z-Image-Omni), which SONA does not give: take Z-Image."
            )
        self.check_text_encoder()
        if self.scheduler is not None and self.scheduler.config.get("shift") == TURBO_SHIFT:
            raise ValueError(
                f"The scheduler has the shift {TURBO_SHIFT} of Z-Image-Turbo, which is distilled to few steps without"
                " guidance: take Z-Image, or the scheduler of Z-Image if the checkpoint is not distilled."
            )
        if self.vae is not None and self.transformer is not None and self.latent_channels != config["in_channels"]:
            raise ValueError(
                f"The VAE makes latents of {self.latent_channels} channels and the transformer takes"
                f" {config['in_channels']}: take both from one checkpoint of Z-Image."
            )

    def in_chat(self, text: str) -> str:
        """A prompt as what a user says, to which the model is to answer."""
        said = [{"role": "user", "content": text}]
        return self.tokenizer.apply_chat_template(
            said, tokenize=False, add_generation_prompt=True, enable_thinking=True
        )

    def denoise(self, rows: torch.Tensor, t: torch.Tensor, conditions: Conditions, attention: dict | None) -> Any:
        """Velocities; the transformer counts time from noise to image, and predicts them the other way round."""
        lengths = conditions["prompt_embeds_mask"].sum(dim=-1).tolist()  # on the CPU: nothing waits for the device
        last = self.scheduler.config.num_train_timesteps
        scale = {"joint_attention_kwargs": attention} if attention else {}  # of adapters; not known to diffusers 0.41
        predicted = self.transformer(
            list(rows.unsqueeze(2)),
            ((last - t) / last).expand(len(rows)),
            [states[:length] for states, length in zip(conditions["prompt_embeds"], lengths)],
            return_dict=False,
            **scale,
        )[0]
        return -torch.stack(predicted).squeeze(2)
