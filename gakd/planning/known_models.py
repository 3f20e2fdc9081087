"""Architectures of common models, as published, for planning without their files."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from transformers import GPT2Config, LlamaConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

_SUFFIXES = ("-Instruct", "-Base")  # the same architecture


class _Decoder(NamedTuple):
    width: int
    mlp_width: int
    layers: int
    heads: int
    key_value_heads: int
    tied: bool
    vocab_size: int


_QWEN3 = {
    "Qwen3-0.6B": _Decoder(1024, 3072, 28, 16, 8, True, 151_936),
    "Qwen3-1.7B": _Decoder(2048, 6144, 28, 16, 8, True, 151_936),
    "Qwen3-4B": _Decoder(2560, 9728, 36, 32, 8, True, 151_936),
    "Qwen3-8B": _Decoder(4096, 12288, 36, 32, 8, False, 151_936),
    "Qwen3-14B": _Decoder(5120, 17408, 40, 40, 8, False, 151_936),
    "Qwen3-32B": _Decoder(5120, 25600, 64, 64, 8, False, 151_936),
}
_QWEN2 = {
    "Qwen2.5-0.5B": _Decoder(896, 4864, 24, 14, 2, True, 151_936),
    "Qwen2.5-1.5B": _Decoder(1536, 8960, 28, 12, 2, True, 151_936),
    "Qwen2.5-3B": _Decoder(2048, 11008, 36, 16, 2, True, 151_936),
    "Qwen2.5-7B": _Decoder(3584, 18944, 28, 28, 4, False, 152_064),
}
_LLAMA = {
    "Llama-3.2-1B": _Decoder(2048, 8192, 16, 32, 8, True, 128_256),
    "Llama-3.2-3B": _Decoder(3072, 8192, 28, 24, 8, True, 128_256),
    "Llama-3.1-8B": _Decoder(4096, 14336, 32, 32, 8, False, 128_256),
    "Llama-3.1-70B": _Decoder(8192, 28672, 80, 64, 8, False, 128_256),
    "SmolLM2-135M": _Decoder(576, 1536, 30, 9, 3, True, 49_152),
    "SmolLM2-360M": _Decoder(960, 2560, 32, 15, 5, True, 49_152),
    "SmolLM2-1.7B": _Decoder(2048, 8192, 24, 32, 32, True, 49_152),
}
_GPT2 = {  # width, layers, heads
    "gpt2": (768, 12, 12),
    "gpt2-medium": (1024, 24, 16),
    "gpt2-large": (1280, 36, 20),
    "gpt2-xl": (1600, 48, 25),
}


def known_config(name: str) -> PreTrainedConfig | None:
    """The architecture of a name such as Qwen3-8B or meta-llama/Llama-3.1-8B-Instruct; None for one not in the list."""
    short = name.rsplit("/", 1)[-1].removeprefix("Meta-")
    for suffix in _SUFFIXES:
        short = short.removesuffix(suffix)
    if short in _QWEN3:
        return _decoder(Qwen3Config, _QWEN3[short], head_dim=128)
    if short in _QWEN2:
        return _decoder(Qwen2Config, _QWEN2[short])
    if short in _LLAMA:
        return _decoder(LlamaConfig, _LLAMA[short])
    if short in _GPT2:
        width, layers, heads = _GPT2[short]
        return GPT2Config(n_embd=width, n_layer=layers, n_head=heads)
    return None


def known_names() -> list[str]:
    return [*_QWEN3, *_QWEN2, *_LLAMA, *_GPT2]


def _decoder(build: Callable[..., PreTrainedConfig], sizes: _Decoder, head_dim: int | None = None) -> PreTrainedConfig:
    return build(
        vocab_size=sizes.vocab_size, hidden_size=sizes.width, intermediate_size=sizes.mlp_width,
        num_hidden_layers=sizes.layers, num_attention_heads=sizes.heads, num_key_value_heads=sizes.key_value_heads,
        tie_word_embeddings=sizes.tied, head_dim=head_dim or sizes.width // sizes.heads,
    )  # fmt: skip
