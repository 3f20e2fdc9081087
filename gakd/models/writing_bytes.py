"""Bytes of one sequence while a model writes it: its cache, its logits, and the forward over its prompt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

# Of the logits of one token: in 16 bits, in fp32, processed, sorted with their places, summed up, as probabilities.
BYTES_PER_LOGIT = 32


def bytes_of_sequence(
    base: Any, cache: tuple[int, int], prompt_length: int, new_tokens: int, itemsize: int = 2
) -> int:  # fmt: skip
    """Cache, logits, and activations and mask of the prompt's forward; `cache` as `cache_of` gives it."""
    config, length = base.config.get_text_config(), prompt_length + new_tokens
    fixed, per_token = cache
    inner = getattr(config, "intermediate_size", None)
    inner = max(inner) if isinstance(inner, (list, tuple)) else inner or 4 * config.hidden_size
    activations = prompt_length * (6 * config.hidden_size + 3 * inner)
    mask = prompt_length * length
    logits = BYTES_PER_LOGIT * base.get_output_embeddings().weight.shape[0]
    return itemsize * (fixed + per_token * length + activations + mask) + logits


def cache_of(forward: Callable[[int], Any]) -> tuple[int, int]:
    """What a cache holds of one sequence: entries that are there whatever its length, and those of each token.

    Read off two caches: `forward` runs over one sequence of so many tokens and returns the model's output.
    """
    few, more = (_entries(forward(length)) for length in (4, 8))
    per_token = (more - few) // 4
    return max(few - 4 * per_token, 0), per_token


def _entries(output: Any) -> int:
    layers = getattr(getattr(output, "past_key_values", None), "layers", [])
    return sum(value.numel() for layer in layers for value in vars(layer).values() if isinstance(value, Tensor))
