"""A made-up family of models: a UNet that predicts the velocity of a flow, by a pooled prompt beside the tokens."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, UNet2DConditionModel
from tiny_pipelines import LENGTH, WIDTH, build
from transformers import CLIPTextModel, CLIPTokenizer

from sona_pipeline.generation import families
from sona_pipeline.pipelines.core import SONAMixin
from sona_pipeline.pipelines.schedules import check_scheduler_kind


class SONATinyFlowPipeline(SONAMixin, DiffusionPipeline):
    """The parts of Stable Diffusion, with a scheduler of flows, and a UNet that takes a pooled prompt, too."""

    title = "Tiny Flow"
    checkpoints = ("TinyFlowPipeline",)
    model_cpu_offload_seq = "text_encoder->unet->vae"

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: FlowMatchEulerDiscreteScheduler,
    ):
        super().__init__()
        self.register_modules(vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler)
        self._set_up_images(vae)

    @property
    def denoiser(self) -> Any:
        return self.unet

    @property
    def image_size(self) -> int:
        return self.unet.config.sample_size * self.vae_scale_factor

    def check_parts(self) -> None:
        check_scheduler_kind(self.scheduler, is_flow=True)

    @property
    def text_encoders(self) -> list[Any]:
        return [self.text_encoder]

    @property
    def condition_shapes(self) -> dict[str, tuple[int | None, ...]]:
        return {"prompt_embeds": (None, WIDTH), "pooled_prompt_embeds": (WIDTH,), "mask": (None,)}

    @property
    def prompt_length(self) -> int:
        return LENGTH

    def token_ids(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, verbose=False).input_ids

    def encode_texts(self, texts: list[str], device: torch.device, clip_skip: int | None = None) -> dict:
        inputs = self.tokenizer(texts, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt")
        outputs = self.text_encoder(inputs.input_ids.to(device))
        mask = inputs.attention_mask.to(device)
        return {"prompt_embeds": outputs[0], "pooled_prompt_embeds": outputs.pooler_output, "mask": mask}

    def denoise(self, rows: torch.Tensor, t: torch.Tensor, conditions: dict, attention: dict | None) -> Any:
        return self.unet(
            rows,
            t,
            encoder_hidden_states=conditions["prompt_embeds"],
            encoder_attention_mask=conditions["mask"].to(rows.device),
            class_labels=conditions["pooled_prompt_embeds"],
            cross_attention_kwargs=attention,
            return_dict=False,
        )[0]


def tiny_flow(dtype: torch.dtype = torch.float32, image_channels: int = 3) -> SONATinyFlowPipeline:
    """A random model of the family, the same at each call."""
    parts = build(image_channels=image_channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        changes = {"class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": WIDTH}
        unet = UNet2DConditionModel.from_config(dict(parts["unet"].config) | changes)
        for name, parameter in unet.named_parameters():
            if "attn2.to_out" in name:
                parameter.data.mul_(4)
    parts |= {"unet": unet.eval().requires_grad_(False), "scheduler": FlowMatchEulerDiscreteScheduler(shift=2.0)}
    pipe = SONATinyFlowPipeline(**parts)
    for part in (pipe.vae, pipe.text_encoder, pipe.unet):
        part.to(dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def save_as_diffusers(pipe: SONATinyFlowPipeline, folder) -> None:
    """Save it as a pipeline of diffusers would be."""
    pipe.save_pretrained(folder)
    (folder / "pipeline.py").unlink()
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_class_name": "TinyFlowPipeline"}))


@contextmanager
def known() -> Iterator[None]:
    """While the family is one of those that the package has."""
    with pytest.MonkeyPatch.context() as patch:
        others = families.all_families
        patch.setattr(families, "all_families", lambda: iter([*others(), SONATinyFlowPipeline]))
        yield
