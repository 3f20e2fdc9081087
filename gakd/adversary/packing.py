"""Supervised rows to sequences of their own, without prompts, and back to which of their positions are real."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gakd.types import Batch


def pack_mask(batch: Batch) -> Tensor:
    """Which positions of packed rows are real: each sequence's supervised ones, moved to the left, `[B, T']` bool."""
    shape = len(batch.lengths), max(batch.lengths)
    real = torch.zeros(math.prod(shape), dtype=torch.bool, device=batch.slots_N.device)
    return real.index_fill_(0, batch.slots_N, True).view(shape)


def pack(rows_NR: Tensor, batch: Batch) -> Tensor:
    """Supervised rows to `[B, T', R]`, left-aligned, zero on padding: no prompt, no padding, positions from 0."""
    shape = len(batch.lengths), max(batch.lengths)
    padded = rows_NR.new_zeros(math.prod(shape), rows_NR.shape[-1])
    return padded.index_copy(0, batch.slots_N, rows_NR).view(*shape, rows_NR.shape[-1])
