"""Examples to a padded batch. Labels are shifted here and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gakd.data.examples import Example
from gakd.types import IGNORE_INDEX, Batch


def collate(examples: Sequence[Example], pad_token_id: int) -> Batch:
    """Right-pad to the longest: inputs are all tokens but the last, labels all but the first; prompts are ignored, and what
    is not trained.

    The mask goes by lengths, never by `ids == pad_token_id`, which may be the end-of-text token.
    """
    if not examples:
        raise ValueError("a batch needs at least one example, got none")
    width = max(example.length for example in examples) - 1
    input_ids = torch.full((len(examples), width), pad_token_id)
    attention_mask = torch.zeros(len(examples), width, dtype=torch.long)
    labels = torch.full((len(examples), width), IGNORE_INDEX)
    for row, example in enumerate(examples):
        ids = torch.tensor(example.prompt_ids + example.response_ids)
        input_ids[row, : len(ids) - 1] = ids[:-1]
        attention_mask[row, : len(ids) - 1] = 1
        taught = ids[len(example.prompt_ids) :]
        if example.trained is not None:
            taught = taught.where(torch.tensor(example.trained), IGNORE_INDEX)
        labels[row, len(example.prompt_ids) - 1 : len(ids) - 1] = taught
    return Batch.of(input_ids, attention_mask, labels, tuple(example.key for example in examples))
