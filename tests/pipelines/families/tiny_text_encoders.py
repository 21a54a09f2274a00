"""Random text encoders of a few thousand weights, which listen to every token."""

import torch
from tiny_pipelines import LENGTH, byte_tokenizer
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)


def clip(width: int, pooled: int | None = None, pad_token: str = "<|endoftext|>", seed: int = 0):
    """A CLIP text encoder and its tokenizer; one that pools to a width has a projection to it."""
    tokenizer = byte_tokenizer(pad_token=pad_token)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=pooled or width,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return loud((CLIPTextModelWithProjection if pooled else CLIPTextModel), config, seed), tokenizer


def t5(width: int):
    """A T5 text encoder and its tokenizer of single letters."""
    special = ["<pad>", "</s>", "<unk>"]
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocabulary = [(token, 0.0) for token in special] + [(token, -2.0) for token in ["\u2581", *letters]]
    tokenizer = T5Tokenizer(vocab=vocabulary, extra_ids=0)
    config = T5Config(
        vocab_size=len(vocabulary),
        d_model=width,
        d_kv=4,
        d_ff=2 * width,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return loud(T5EncoderModel, config, seed=2), tokenizer


def loud(kind, config, seed):
    """A model whose random token embeddings outweigh everything else."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "token_embedding" in name or name == "shared.weight":
            parameter.mul_(50)
        elif "text_projection" in name:
            parameter.mul_(20)
    return model
