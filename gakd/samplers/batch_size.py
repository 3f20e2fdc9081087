"""How many sequences one batch of generation may have: by the card's memory, not by what happens to be free of it.

So the same run on the same kind of card, taken up again or not, cuts its prompts into the same batches and writes the same text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from gakd.models.lora import base_of
from gakd.models.mode import device_of, evaluating
from gakd.models.sharding import is_sharded
from gakd.models.writing_bytes import bytes_of_sequence, cache_of
from gakd.samplers.writing import writing_of

SHARE = 0.25  # of a card, for caches and logits; the rest is for weights, gradients and moments


def largest_batch(models: Sequence[nn.Module], prompt_length: int, new_tokens: int) -> int | None:
    """Sequences that models on a GPU may write at once, a power of two; None, no bound, on a CPU and where weights are cut
    over ranks, which must have equally many batches.
    """
    bases = [base_of(model) for model in models]
    on_gpu = [base for base in bases if device_of(base).type == "cuda"]
    if not on_gpu or any(is_sharded(base) for base in bases):
        return None
    memory = min(torch.cuda.get_device_properties(device_of(base)).total_memory for base in on_gpu)
    return sequences_in(int(SHARE * memory), sum(sequence_bytes(base, prompt_length, new_tokens) for base in on_gpu))


def longest(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens of the longest prompt; 0 without any."""
    return max(map(len, prompts), default=0)


def sequences_in(budget: int, each: int) -> int:
    """The largest power of two of sequences in so many bytes; one at least."""
    return 1 << (max(budget // each, 1).bit_length() - 1)


def sequence_bytes(base: Any, prompt_length: int, new_tokens: int, itemsize: int = 2) -> int:
    """Bytes of one sequence while it is written: cache, logits, and activations and mask of the prompt's forward."""
    return bytes_of_sequence(base, cache_entries(base), prompt_length, new_tokens, itemsize)


def cache_entries(base: Any) -> tuple[int, int]:
    """What a model's cache holds of one sequence: entries that are there whatever its length, and those of each token."""
    known = "_gakd_cache_entries"
    if not hasattr(base, known):
        setattr(base, known, cache_of(lambda length: _cached(base, length)) if writing_of(base).cached else (0, 0))
    return getattr(base, known)


def _cached(base: Any, length: int) -> Any:
    ids_1T = torch.full((1, length), 3, device=device_of(base))
    with evaluating(base):
        return base(input_ids=ids_1T, use_cache=True)
