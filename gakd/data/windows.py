"""Which examples each optimizer step sees, and how they are dealt to ranks and micro-batches.

A window, the examples of one optimizer step, is a function of lengths, batch size, seed and step alone. So a resumed run
needs no data state, and neither the micro-batch size nor the number of ranks changes what a step learns from.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from gakd.errors import InputError

POOL = 16  # windows whose examples are sorted by length together


class Windows:
    """Length-bucketed windows: each epoch is shuffled, cut into pools of 16 windows, sorted by length inside a pool, and
    its windows are shuffled again. An example comes at most once an epoch; what fills no window waits for the next.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, got {batch_size}")
        if len(lengths) < batch_size:
            raise InputError(
                f"{len(lengths)} examples do not fill one batch of {batch_size}: give more data or a smaller --batch-size"
            )
        self.lengths = np.asarray(lengths)
        self.batch_size, self.seed = batch_size, seed
        self._epoch: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        """Windows, that is optimizer steps, per epoch."""
        return len(self.lengths) // self.batch_size

    def at(self, step: int) -> list[int]:
        """Indices of the examples of global optimizer step `step`, any number of epochs on."""
        epoch, position = divmod(step, len(self))
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, self._order(epoch)
        return self._epoch[1][position].tolist()

    def _order(self, epoch: int) -> np.ndarray:
        random = np.random.default_rng((self.seed, epoch))
        order = random.permutation(len(self.lengths))[: len(self) * self.batch_size]
        size = POOL * self.batch_size
        pools = [order[start : start + size] for start in range(0, len(order), size)]
        ordered = np.concatenate([pool[np.argsort(self.lengths[pool], kind="stable")] for pool in pools])
        return random.permutation(ordered.reshape(-1, self.batch_size))


def split_window(
    window: Sequence[int],
    lengths: Sequence[int],
    micro_batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    micro_batch_tokens: int | None = None,
    room: Sequence[int] | None = None,
) -> list[list[int]]:
    """This rank's micro-batches: like lengths together, like work on each rank, the same number on all.

    Each has `micro_batch_size` sequences; or, where `micro_batch_tokens` is given, as many as have no more positions than
    that when they are padded to their longest: one at least. Positions are what `collate` makes: a token less than `lengths`.
    `room` are the tokens that sequences may come to have, where that is more. The order of sequences goes by neither.
    """
    if len(window) % world_size:
        raise ValueError(f"a window of {len(window)} examples cannot be dealt evenly to {world_size} processes")
    if micro_batch_size < 1:
        raise InputError(f"micro_batch_size must be at least 1, got {micro_batch_size}")
    if micro_batch_tokens is not None and micro_batch_tokens < 1:
        raise InputError(f"micro_batch_tokens must be at least 1, got {micro_batch_tokens}")
    ordered = sorted(window, key=lambda index: (lengths[index], index))
    own = ordered[rank::world_size]
    if micro_batch_tokens is None:
        starts = list(range(0, len(own), micro_batch_size))
    else:
        # By the longest of those dealt together, one to a rank: one cut for all ranks.
        tokens = [(room or lengths)[index] for index in ordered]
        widths = [max(tokens[start : start + world_size]) - 1 for start in range(0, len(tokens), world_size)]
        starts = _starts(widths, micro_batch_tokens)
    return [own[start:end] for start, end in pairwise([*starts, len(own)])]


def _starts(widths: Sequence[int], positions: int) -> list[int]:
    """Where groups begin, each of as many neighbours as its padded positions allow."""
    starts, widest = [0], 0
    for place, width in enumerate(widths):
        widest = max(widest, width)
        if place > starts[-1] and (place + 1 - starts[-1]) * widest > positions:
            starts.append(place)
            widest = width
    return starts


def padding_share(lengths: Sequence[int], groups: Sequence[Sequence[int]]) -> float:
    """Share of positions that are padding when each group is padded to its longest."""
    padded = sum(max(lengths[index] for index in group) * len(group) for group in groups)
    return 1 - sum(lengths[index] for group in groups for index in group) / padded
