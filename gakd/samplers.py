"""Whose text is trained on: samplers keep the dataset's responses or replace them, for a whole optimizer step at once.

    for window in run.steps(data):
        window = resample(window, sampler, run.step, data.pad_token_id)

A sampler maps samples to as many samples; all but replay leave prompts untouched. All micro-batches of a step are answered in
one batch, and then stand in micro-batches of the sizes they had. What is drawn is a function of the sampler's seed and of the
step, so a resumed run draws the same.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, NamedTuple, Protocol

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from gakd.data import Example, Row, collate
from gakd.evaluation.generation import Sampling, generate, special_ids
from gakd.seeds import seed_of
from gakd.types import Batch
from gakd.weights import Weight, weight_at


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
    rows = zip(batch.input_ids.tolist(), starts, responses, strict=True)
    return [Sample(ids[: start + 1], response.tolist()) for ids, start, response in rows]


def dataset_sampler(samples: Sequence[Sample], step: int) -> Sequence[Sample]:
    """The dataset's own responses."""
    return samples


class ModelSampler:
    """Responses that a model writes: the student's own text, or its teacher's.

    One batch for all prompts, left-padded, with a key-value cache; an end-of-text token that was drawn is kept and becomes a
    label. A response ends at `max_length` tokens of prompt and response at the latest. `truncated` is the share of
    the last call's responses that were cut.
    """

    def __init__(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, sampling: Sampling, max_length: int | None = None
    ) -> None:
        self.model, self.tokenizer, self.sampling, self.max_length = model, tokenizer, sampling, max_length
        self.truncated = 0.0

    def __call__(self, samples: Sequence[Sample], step: int) -> list[Sample]:
        prompts = [sample.prompt_ids for sample in samples]
        sampling = replace(self.sampling, seed=seed_of(self.sampling.seed, step))
        end, _ = special_ids(self.tokenizer)
        answered = []
        for prompt, generation in zip(
            prompts, generate(self.model, self.tokenizer, prompts, sampling, max(len(prompts), 1)), strict=True
        ):
            room = None if self.max_length is None else max(self.max_length - len(prompt), 1)
            answered.append(Sample(prompt, generation.response_ids(end)[:room]))
        self.truncated = sum(sample.response_ids[-1] != end for sample in answered) / max(len(answered), 1)
        return answered


class Mixture:
    """Each batch, or each sequence, from one of several samplers, drawn by weights that may be schedules of the step.

    `Mixture([(0.5, student), (0.5, dataset_sampler)])` is GKD's lambda of 0.5 (arXiv 2306.13649, algorithm 1). Weights need not
    sum to 1; ValueError where one is below 0 or none is above it. `counts` are the samples that each gave in the last call.
    """

    def __init__(
        self, parts: Sequence[tuple[Weight, Sampler]], per: Literal["batch", "sequence"] = "batch", seed: int = 0
    ) -> None:
        self.parts, self.per, self.seed = list(parts), per, seed
        self.counts = [0] * len(self.parts)

    def __call__(self, samples: Sequence[Sample], step: int) -> list[Sample]:
        weights = [weight_at(weight, step) for weight, _ in self.parts]
        if min(weights) < 0 or sum(weights) <= 0:
            raise ValueError(f"the weights of a mixture are at least 0, and one is above, got {weights} at step {step}")
        draw = random.Random(seed_of(self.seed, step))
        draws = 1 if self.per == "batch" else len(samples)
        chosen = draw.choices(range(len(self.parts)), weights, k=draws) * (len(samples) if self.per == "batch" else 1)
        self.counts = [chosen.count(index) for index in range(len(self.parts))]
        mixed: dict[int, Sample] = {}
        for index, (_, sampler) in enumerate(self.parts):
            places = [place for place, choice in enumerate(chosen) if choice == index]
            if places:
                mixed |= zip(places, sampler([samples[place] for place in places], step), strict=True)
        return [mixed[place] for place in range(len(samples))]
