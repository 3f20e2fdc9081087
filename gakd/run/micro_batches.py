"""A step's micro-batches on this rank, as tensors of the host: which examples, cut how, padded."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

from gakd.data import Data, Windows, collate, split_window
from gakd.data.encoded import lengths_of, prompt_lengths_of
from gakd.flags import flags_of
from gakd.run.config import RunConfig
from gakd.types import Batch


class Window(NamedTuple):
    batches: list[Batch]
    rows: list[tuple[str, ...]]  # of each batch: where its sequences come from


class MicroBatches:
    """This rank's micro-batches of any step: a function of the step, which a thread may call.

    Where the recipe writes text (`--student-max-new-tokens`), `--micro-batch-tokens` bounds what sequences may come to have:
    micro-batches keep their sizes when a sampler replaces their responses. InputError as `Windows`.
    """

    def __init__(
        self, config: RunConfig, recipe_config: Any, data: Data, rank: int, world_size: int, device: torch.device
    ) -> None:
        self.config, self.data, self.rank, self.world_size, self.device = config, data, rank, world_size, device
        lengths = lengths_of(data.train)
        self.lengths: list[int] = lengths.tolist()
        self.room: list[int] = np.maximum(lengths, _written(data, recipe_config)).tolist()
        self.windows = Windows(self.lengths, config.batch_size, config.seed)

    def at(self, step: int) -> Window:
        config = self.config
        groups = split_window(
            self.windows.at(step), self.lengths, config.micro_batch_size, self.rank, self.world_size,
            config.micro_batch_tokens, self.room,
        )  # fmt: skip
        chosen = [[self.data.train[index] for index in group] for group in groups]
        batches = [collate(group, self.data.pad_token_id) for group in chosen]
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)  # a new thread stands at the first GPU, whose memory is another rank's
            batches = [batch.pinned() for batch in batches]
        return Window(batches, [tuple(example.row.where for example in group) for group in chosen])

    def warning(self) -> str | None:
        """Of examples that alone have more positions than a micro-batch is to have."""
        bound = self.config.micro_batch_tokens
        positions = [tokens - 1 for tokens in self.room]
        longer = 0 if bound is None else sum(own > bound for own in positions)
        if not longer:
            return None
        return (
            f"{longer} of {len(positions)} examples have more positions than --micro-batch-tokens {bound}, up to "
            f"{max(positions)}: each is a micro-batch of its own, of that many"
        )


def _written(data: Data, recipe_config: Any) -> np.ndarray:
    """Most tokens that each sequence may have once a sampler has replaced its response; 0 where none does.

    A replay has prompts of its own, so there any sequence may be as long as the longest.
    """
    flags = dict(flags_of(recipe_config))
    new = flags.get("student_max_new_tokens")
    if new is None:
        return np.zeros(len(data.train), np.int64)
    prompts = prompt_lengths_of(data.train)
    longest = prompts + new if data.config is None else np.minimum(prompts + new, data.config.max_length)
    return np.full_like(longest, longest.max()) if "replay_capacity" in flags else longest
