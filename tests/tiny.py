"""Tiny random models and a tokenizer to go with them, saved and loaded the way real ones are."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

# The structure of Qwen3's template: roles, and an empty thought where thinking is off.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
QWEN_SPECIAL = {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645}


def tokenizer(qwen_sized: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level, 256 bytes and three special tokens; `qwen_sized` puts those at Qwen3's ids, behind unused fillers."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    special = dict(QWEN_SPECIAL) if qwen_sized else {name: 256 + i for i, name in enumerate(QWEN_SPECIAL)}
    if qwen_sized:
        vocabulary |= {f"<filler {index}>": index for index in range(256, 151643)}
    vocabulary |= special
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(name, special=True) for name in special])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def model(
    vocab_size: int = 272, width: int = 32, layers: int = 2, tied: bool = True, seed: int = 0, scale: float = 1.0
) -> Qwen3ForCausalLM:
    """A random Qwen3; `scale` multiplies the head, for teachers with opinions."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=vocab_size, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=1, head_dim=width // 2, tie_word_embeddings=tied, eos_token_id=258, pad_token_id=256,
        max_position_embeddings=512, bos_token_id=None,
    )  # fmt: skip
    built = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        built.get_output_embeddings().weight.mul_(scale)
    return built


def save(folder: Path, built: Qwen3ForCausalLM, words: PreTrainedTokenizerFast) -> Path:
    built.config.eos_token_id = words.eos_token_id
    built.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder
