"""What small models with Qwen's texts have in common: a tokenizer of single characters, and sizes of text encoders."""

from tiny_pipelines import WIDTH, byte_tokenizer
from transformers import Qwen2Tokenizer

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)
"""The chat of Qwen3 for one message of a user."""
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
LANGUAGE_MODEL = {
    "hidden_size": WIDTH,
    "intermediate_size": WIDTH,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.5,
}
"""Hidden states have to differ from text to text, for which the usual initial weights are too small."""


def qwen_tokenizer() -> Qwen2Tokenizer:
    """A tokenizer of single characters, and three words of the chat."""
    symbols = sorted(token for token in byte_tokenizer().get_vocab() if len(token) == 1)
    vocab = {token: k for k, token in enumerate([*symbols, *SPECIAL])}
    return Qwen2Tokenizer(vocab=vocab, merges=[], extra_special_tokens=SPECIAL[1:], chat_template=CHAT)
