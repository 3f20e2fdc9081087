"""What a model is asked to be told by: two short rows of text, and how far answers are apart."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from gakd.types import IGNORE_INDEX, Batch, Head

_LENGTHS = (7, 4)  # tokens of the two rows


def two_rows(config: PreTrainedConfig, head: Head) -> Batch:
    """Two right-padded rows of plain tokens, where the head is; each of their tokens is supervised."""
    taken = set(numbers(config, lambda name: "token" in name)) | set(
        numbers(config.get_text_config(), lambda name: "token" in name)
    )
    free = [index for index in range(min(head.vocab_size, 1000)) if index not in taken]
    ids = [free[(3 + 5 * place) % len(free)] for place in range(sum(_LENGTHS))]
    input_ids = torch.full((2, _LENGTHS[0]), ids[0])
    mask = torch.zeros_like(input_ids)
    for row, (start, length) in enumerate(zip((0, _LENGTHS[0]), _LENGTHS, strict=True)):
        input_ids[row, :length] = torch.tensor(ids[start : start + length])
        mask[row, :length] = 1
    labels = torch.where(mask.bool(), input_ids, IGNORE_INDEX)
    return Batch.of(input_ids, mask, labels).to(head.weight.device)


def weight_of(base: Any) -> Head:
    """The weight of a model's head, for its size and place."""
    return Head(base.get_output_embeddings().weight)


def numbers(config: PreTrainedConfig, wanted: Callable[[str], bool] = lambda name: True) -> Iterable[float]:
    """The numbers of a configuration, under names that are wanted."""
    for name, value in config.to_dict().items():
        if isinstance(value, (int, float)) and not isinstance(value, bool) and wanted(name):
            yield value


def difference(found_NX: Tensor, expected_NX: Tensor) -> float:
    """The largest relative difference of a row; infinite where something is not finite."""
    found_NX, expected_NX = found_NX.double(), expected_NX.double()
    apart_N = (found_NX - expected_NX).norm(dim=-1) / expected_NX.norm(dim=-1).clamp_min(1e-30)
    largest = float(apart_N.max())
    return largest if largest == largest else float("inf")
