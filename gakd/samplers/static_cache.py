"""A key-value cache of one size, with which transformers compiles a decode step and replays it as one CUDA graph.

A graph is of one shape, and which kernels it holds is a matter of its shape alone (`dynamic=False`): text is then a function of
the seed, the prompts and the batch, not of the shapes that came before. So batches are filled up to a power of two and the
cache to a multiple of 128 tokens, which keeps graphs few.
"""

from __future__ import annotations

import warnings
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import CompileConfig, GenerationConfig, StaticCache

from gakd.machine import has_triton
from gakd.models.asking import difference, two_rows, weight_of
from gakd.models.mode import evaluating
from gakd.models.sharding import is_sharded

LEAST_ROWS, LENGTH_STEP = 16, 128
_SERVES: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
_CACHES: WeakKeyDictionary[nn.Module, tuple[tuple[int, int], StaticCache]] = WeakKeyDictionary()


def serves(writer: Any) -> bool:
    """Whether a model on a GPU can be compiled with a static cache, and writes the same with one; asked once.

    Where not, or without Triton, it writes with a cache that grows.
    """
    if writer.device.type != "cuda" or is_sharded(writer) or not getattr(writer, "_can_compile_fullgraph", False):
        return False
    if not has_triton():
        return False
    if writer not in _SERVES:
        _SERVES[writer] = writes_the_same(writer)
    return _SERVES[writer]


def writes_the_same(writer: Any) -> bool:
    """Whether a few greedy tokens after two rows of unlike length have the logits that they have with a growing cache."""
    rows = two_rows(writer.config, weight_of(writer))
    ids_BT, mask_BT = rows.input_ids.flip(1), rows.attention_mask.flip(1)  # padding to the left
    tolerance = 1e-3 if writer.dtype in (torch.float32, torch.float64) else 0.1
    own, writer.generation_config = writer.generation_config, GenerationConfig()

    def written(cache: Any) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        config = GenerationConfig(
            max_new_tokens=5, min_new_tokens=5, do_sample=False, output_logits=True, return_dict_in_generate=True,
            disable_compile=True,
        )  # fmt: skip
        output = writer.generate(
            input_ids=ids_BT, attention_mask=mask_BT, generation_config=config, past_key_values=cache
        )
        return output.logits, list(output.sequences[:, ids_BT.shape[1] :].T)

    try:
        with evaluating(writer):
            grown, tokens = written(None)
            fixed, others = written(StaticCache(writer.config, ids_BT.shape[1] + 16))
    except torch.OutOfMemoryError:
        raise
    except Exception:  # a model with a cache of its own kind
        return False
    finally:
        writer.generation_config = own
    # Up to the first token that differs, where two may tie in 16 bits: what follows answers another text.
    same = next((place for place, pair in enumerate(zip(tokens, others, strict=True)) if not torch.equal(*pair)), 4)
    return all(difference(fixed[place], grown[place]) <= tolerance for place in range(same + 1))


def filled(rows: int, batch_size: int) -> int:
    """Rows of a batch that is filled up: a power of two, 16 at least where batches may be so large."""
    return min(max(LEAST_ROWS, _power_of_two(rows)), _power_of_two(batch_size))


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


def cache_for(writer: Any, rows: int, length: int) -> StaticCache:
    """An empty cache for so many rows and at least so many tokens: the one before where its size is the same."""
    size = (rows, -(-length // LENGTH_STEP) * LENGTH_STEP)
    kept = _CACHES.get(writer)
    if kept is None or kept[0] != size:
        _CACHES.pop(writer, None)  # first out, then in
        kept = _CACHES[writer] = size, StaticCache(writer.config, size[1])
    cache = kept[1]
    cache.reset()
    return cache


def compile_config(device: torch.device) -> CompileConfig | None:
    """One graph a shape; None on a CPU, where transformers compiles nothing."""
    return None if device.type == "cpu" else CompileConfig(dynamic=False)


def give_up(writer: Any, error: Exception) -> None:
    """Write with a growing cache from now on, and say so."""
    _SERVES[writer] = False
    _CACHES.pop(writer, None)
    warnings.warn(
        f"{type(writer).__name__} could not be compiled to write, and writes without CUDA graphs, at a fraction of the speed: "
        f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
        stacklevel=2,
    )
