"""Text that one model writes: the student, or its teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from gakd.samplers.batch_size import largest_batch, longest
from gakd.samplers.config import Sampling
from gakd.samplers.generation import generate
from gakd.samplers.protocol import Sample
from gakd.seeds import seed_of


class ModelSampler:
    """Responses that a model writes: the student's own text, or its teacher's.

    One batch for all prompts, left-padded, with a key-value cache, or on a GPU as few as its memory allows (`batch_size`:
    at most so many at once; `batch_size.largest_batch` where it is None); an end that was drawn is kept and becomes a
    label. A response ends at `max_length` tokens of prompt and response at the latest. `truncated` is the share of
    the last call's responses that were cut. `vocab_size` is that of whoever reads the text, a teacher whose head may be
    narrower than the student's: no token beyond it is drawn.

    A GPU writes with weights in bf16, or in `dtype`: text of a policy that is rounded a little otherwise than the one that
    is trained. What training compares text by, such as `old_log_probs`, is to come from the student in training's
    precision, as `rollouts.policy_log_probs` takes it: ratios then begin at 1. `compiled`: keep these weights between steps and
    replay decode steps as CUDA graphs, where the model allows it; the first step then waits for a compiler.
    """

    def __init__(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, sampling: Sampling, max_length: int | None = None,
        vocab_size: int | None = None, batch_size: int | None = None, dtype: torch.dtype | None = None,
        compiled: bool = True,
    ) -> None:  # fmt: skip
        self.model, self.tokenizer, self.sampling, self.max_length = model, tokenizer, sampling, max_length
        self.vocab_size, self.batch_size, self.dtype, self.compiled = vocab_size, batch_size, dtype, compiled
        self.truncated = 0.0

    def __call__(self, samples: Sequence[Sample], step: int) -> list[Sample]:
        prompts = [sample.prompt_ids for sample in samples]
        sampling = replace(self.sampling, seed=seed_of(self.sampling.seed, step))
        size = self.batch_size or largest_batch([self.model], longest(prompts), sampling.max_new_tokens)
        written = generate(
            self.model, self.tokenizer, prompts, sampling, size or max(len(prompts), 1),
            max_length=self.max_length, vocab_size=self.vocab_size, dtype=self.dtype, often=self.compiled,
        )  # fmt: skip
        answered, cut = [], 0
        for prompt, generation in zip(prompts, written, strict=True):
            room = None if self.max_length is None else max(self.max_length - len(prompt), 1)
            response_ids = generation.response_ids[:room]
            cut += response_ids[-1] != generation.end
            answered.append(Sample(prompt, response_ids))
        self.truncated = cut / max(len(answered), 1)
        return answered
