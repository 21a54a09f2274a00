"""SONA with Qwen-Image."""

from typing import Any

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    QwenImageTransformer2DModel,
)
from diffusers.loaders import QwenImageLoraLoaderMixin
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from sona_pipeline.pipelines.batch import Conditions
from sona_pipeline.pipelines.core import SONAMixin
from sona_pipeline.pipelines.one_frame import OneFrameMixin
from sona_pipeline.pipelines.packing import packed, unpacked
from sona_pipeline.pipelines.qwen import QwenMixin

CHAT = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial"
    " relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
"""What the model was trained with; 34 tokens stand before the prompt."""


class SONAQwenImagePipeline(QwenMixin, OneFrameMixin, SONAMixin, DiffusionPipeline, QwenImageLoraLoaderMixin):
    r"""Image-to-image pipeline that turns labelled images into semantic outliers with Qwen-Image.

    Each image is noised up to a stop step of its own and denoised with `sona_guidance`, which removes the meaning of
    the ID prompt, keeps the image's nuisance and adds the meaning of the OOD prompt. The guided prediction is not
    rescaled to the norm of a conditional one, as diffusers' own pipelines do: that would undo the guidance.

    Args:
        scheduler ([`FlowMatchEulerDiscreteScheduler`]): the scheduler, which shifts its steps for the size of images.
        vae ([`AutoencoderKLQwenImage`]): encodes images, which are films of one frame, to latents and back.
        text_encoder ([`~transformers.Qwen2_5_VLForConditionalGeneration`]): gives the hidden states of prompts.
        tokenizer ([`~transformers.Qwen2Tokenizer`]): its tokenizer.
        transformer ([`QwenImageTransformer2DModel`]): predicts velocity from tokens of 2 x 2 latents and prompt.
    """

    title = "Qwen-Image"
    checkpoints = ("QwenImagePipeline", "QwenImageImg2ImgPipeline")
    model_cpu_offload_seq = "text_encoder->transformer->vae"
    _optional_components: list[str] = []
    dropped_tokens = 34
    encoder_options = {"logits_to_keep": 1}  # of no use, and as wide as the vocabulary

    def __init__(
        self,
        scheduler: FlowMatchEulerDiscreteScheduler,
        vae: AutoencoderKLQwenImage,
        text_encoder: Qwen2_5_VLForConditionalGeneration,
        tokenizer: Qwen2Tokenizer,
        transformer: QwenImageTransformer2DModel,
    ):
        super().__init__()
        self.register_modules(
            vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, transformer=transformer, scheduler=scheduler
        )
        self.check_parts()
        self._set_up_images(vae)

    @property
    def prompt_width(self) -> int:
        """Width of the prompts that the transformer takes."""
        return self.transformer.config.joint_attention_dim

    def check_parts(self) -> None:
        """Raise ValueError, naming the part, unless these make Qwen-Image, which takes text and noise only."""
        transformer, vae = self.transformer, self.vae
        kinds = {"transformer": (transformer, "joint_attention_dim"), "vae": (vae, "z_dim")}
        for name, (part, needed) in kinds.items():
            if part is not None and needed not in part.config:
                raise ValueError(f"`{name}` is a {type(part).__name__} without {needed!r}: take Qwen-Image.")
        if transformer is not None:
            _check_inputs(transformer.config)
        if vae is not None and self.image_channels not in (1, 3):
            raise ValueError(
                f"The VAE takes images of {self.image_channels} channels, as in Qwen-Image-Layered: take Qwen-Image."
            )
        self.check_text_encoder()
        if vae is not None and transformer is not None and 4 * self.latent_channels != transformer.config.in_channels:
            raise ValueError(
                f"The VAE makes latents of {self.latent_channels} channels and the transformer takes"
                f" {transformer.config.in_channels} for 2 x 2 of them: take both from one checkpoint of Qwen-Image."
            )

    def in_chat(self, text: str) -> str:
        """A prompt in `CHAT`; the empty one is a space, as the model's authors have it."""
        return CHAT.format(text or " ")

    def trimmed(self, conditions: Conditions) -> Conditions:
        """Conditions up to the longest prompt, with the mask on the device of the states."""
        device = conditions["prompt_embeds"].device
        return {name: value.to(device) for name, value in super().trimmed(conditions).items()}

    def denoise(self, rows: torch.Tensor, t: torch.Tensor, conditions: Conditions, attention: dict | None) -> Any:
        """Velocities."""
        height, width = rows.shape[2:]
        predicted = self.transformer(
            hidden_states=packed(rows),
            timestep=(t / self.scheduler.config.num_train_timesteps).expand(len(rows)),
            encoder_hidden_states=conditions["prompt_embeds"],
            encoder_hidden_states_mask=conditions["prompt_embeds_mask"],
            img_shapes=[[(1, height // 2, width // 2)]] * len(rows),
            attention_kwargs=attention,
            return_dict=False,
        )[0]
        return unpacked(predicted, height, width)


def _check_inputs(config: Any) -> None:
    """Raise ValueError for a transformer that takes more than text and noise, or guidance as a number."""
    others = {
        "guidance_embeds": "distilled to take the guidance as a number, which diffusers cannot give it",
        "zero_cond_t": "made to edit images (Qwen-Image-Edit)",
        "use_additional_t_cond": "made for images in layers (Qwen-Image-Layered)",
        "use_layer3d_rope": "made for images in layers (Qwen-Image-Layered)",
    }
    for name, kind in others.items():
        if config.get(name):
            raise ValueError(f"The transformer is {kind}, as {name} says: take Qwen-Image.")
    if config.in_channels != 4 * config.out_channels:
        raise ValueError(
            f"The transformer takes {config.in_channels} channels for 2 x 2 latents and gives"
            f" {4 * config.out_channels}: it is made for images beside the noise, too; take Qwen-Image."
        )
