"""Whose text is trained on: samplers keep the dataset's responses or replace them, for a whole optimizer step at once.

    for window in run.steps(data):
        window = resample(window, sampler, run.step, data.pad_token_id)

A sampler maps samples to as many samples; all but replay leave prompts untouched. All micro-batches of a step are answered in
one batch, and then stand in micro-batches of the sizes they had. What is drawn is a function of the sampler's seed and of the
step, so a resumed run draws the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from gakd.data import Example, Row, collate
from gakd.data.ends import end_ids
from gakd.types import Batch


class Sample(NamedTuple):
    """A prompt and its response, in token ids."""

    prompt_ids: list[int]
    response_ids: list[int]  # ends with the end-of-text token unless it was cut
    weights: list[float] | None = None  # importance weight of each response token; None is 1 at all of them

    @property
    def example(self) -> Example:
        return Example(self.prompt_ids, self.response_ids, Row(""))


class Sampler(Protocol):
    """The samples of one step to those that are trained on: as many, in their order where they answer the same prompts."""

    def __call__(self, samples: Sequence[Sample], step: int) -> Sequence[Sample]: ...


def resample(window: Sequence[Batch], sampler: Sampler, step: int, pad_token_id: int) -> list[Batch]:
    """The micro-batches of one optimizer step with the sampler's responses in them; their sizes and order stay.

    Importance weights, where samples have them, become the row value `importance_weights`. Several responses to a prompt:
    `resample(window * n, ...)`, answers in n rounds of the whole window. ValueError where a sampler gives another number
    of samples than it was given, or one without prompt or response.
    """
    before = [sample for batch in window for sample in samples_of(batch)]
    after = list(sampler(before, step))
    if len(after) != len(before):
        raise ValueError(f"a sampler answers each sample with one: got {len(after)} for {len(before)}")
    if empty := [index for index, sample in enumerate(after) if not (sample.prompt_ids and sample.response_ids)]:
        raise ValueError(f"a sample has a prompt and a response, got one without at index {empty[0]}")
    weighted = any(sample.weights is not None for sample in after)
    batches, start = [], 0
    for batch in window:
        own = after[start : start + len(batch.lengths)]
        start += len(own)
        made = collate([sample.example for sample in own], pad_token_id)
        if weighted:
            weights = [weight for sample in own for weight in sample.weights or [1.0] * len(sample.response_ids)]
            made = made.with_row_values({"importance_weights": torch.tensor(weights)})
        batches.append(made.to(batch.input_ids.device))
    return batches


def samples_of(batch: Batch) -> list[Sample]:
    """What `gakd.data.collate` made the batch of. ValueError for a sequence without a response, whose prompt has no end."""
    if 0 in batch.lengths:
        raise ValueError(f"each sequence needs a response to replace, got supervised tokens {list(batch.lengths)}")
    responses = batch.labels_N.cpu().split(list(batch.lengths))
    starts = batch.mask.int().argmax(1).tolist()
    widths = (batch.mask * torch.arange(1, batch.mask.shape[1] + 1, device=batch.mask.device)).amax(1).tolist()
    if [end - start for start, end in zip(starts, widths, strict=True)] != list(batch.lengths):
        raise ValueError(
            "a sampler replaces one response, and these sequences have several turns: give --train-on last"
        )
    rows = zip(batch.input_ids.tolist(), starts, responses, strict=True)
    return [Sample(ids[: start + 1], response.tolist()) for ids, start, response in rows]


class UntilEnd:
    """Each response up to its first end, as a model writes it that stops there.

    A chat template may set more behind the token at which generation stops, as the line break behind `<|im_end|>`. Where
    texts of a dataset are compared with sampled ones, that alone would tell them apart.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *models: nn.Module) -> None:
        self._ends = frozenset(end_ids(tokenizer, *models))

    def __call__(self, samples: Sequence[Sample], step: int) -> list[Sample]:
        return [sample._replace(response_ids=self._cut(sample.response_ids)) for sample in samples]

    def _cut(self, ids: list[int]) -> list[int]:
        return next((ids[: place + 1] for place, token in enumerate(ids) if token in self._ends), ids)


def dataset_sampler(samples: Sequence[Sample], step: int) -> Sequence[Sample]:
    """The dataset's own responses."""
    return samples
