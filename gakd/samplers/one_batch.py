"""One batch of text: seeded, padded on the left, with a cache that grows or one of a fixed size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from transformers import GenerationConfig

from gakd.samplers import static_cache
from gakd.seeds import seed_of


def write_batch(
    writer: Any, config: GenerationConfig, prompts: Sequence[Sequence[int]], device: torch.device, seed: int,
    compiled_size: int | None,
) -> list[list[int]]:  # fmt: skip
    """Token ids behind each prompt, padding included; compiled, where `static_cache.serves` said so, for batches up to a size.

    What cannot be compiled after all writes as it is, with a warning, from the same seed.
    """
    if compiled_size is not None:
        try:
            return _write(writer, config, prompts, device, seed, static_cache.filled(len(prompts), compiled_size))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a compiler raises
            static_cache.give_up(writer, error)
    return _write(writer, config, prompts, device, seed, None)


def batch_seed(seed: int, number: int) -> int:
    """Of a batch among several: what it draws depends on none of the others, nor on who writes them."""
    return seed_of(seed, number) if number else seed


def _write(
    writer: Any, config: GenerationConfig, prompts: Sequence[Sequence[int]], device: torch.device, seed: int,
    fixed: int | None,
) -> list[list[int]]:  # fmt: skip
    """`fixed`: rows of a batch that is filled up, with a cache of one size."""
    cache: dict[str, Any] = {}
    rows = list(prompts)
    config.compile_config = None if fixed is None else static_cache.compile_config(device)
    if fixed is not None:
        rows += [min(prompts, key=len)] * (fixed - len(rows))
        length = max(map(len, rows)) + cast(int, config.max_new_tokens)
        cache["past_key_values"] = static_cache.cache_for(writer, len(rows), length)
    input_ids, attention_mask = left_padded(rows, cast(int, config.pad_token_id))
    with seeded(device, seed):
        output = writer.generate(
            input_ids=input_ids.to(device), attention_mask=attention_mask.to(device), generation_config=config, **cache
        )
    return output[: len(prompts), input_ids.shape[1] :].tolist()


@contextmanager
def seeded(device: torch.device, seed: int) -> Iterator[None]:
    """The generators of the CPU and of one device, seeded; the caller's states come back afterwards."""
    if device.type == "cpu":
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed every GPU too
            yield
    else:
        index = torch.get_device_module(device).current_device() if device.index is None else device.index
        with torch.random.fork_rng(devices=[index], device_type=device.type):
            torch.default_generator.manual_seed(seed)
            torch.get_device_module(device).default_generators[index].manual_seed(seed)
            yield


def left_padded(prompts: Sequence[Sequence[int]], pad_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask `[B, T]`; the mask goes by lengths, so a padding token that also ends text does no harm."""
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[pad_token_id] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask
