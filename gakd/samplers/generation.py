"""Batched sampling of responses: left-padded prompts, key-value cache, seeded without touching the caller's RNG."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from gakd.data.ends import channel_header, end_ids
from gakd.models.loading import window_of_config
from gakd.models.lora import base_of
from gakd.models.mode import device_of, evaluating
from gakd.models.sharding import is_sharded
from gakd.run.ranks import ALONE, Ranks
from gakd.samplers import static_cache
from gakd.samplers.config import Sampling
from gakd.samplers.copies import writing
from gakd.samplers.one_batch import batch_seed, write_batch
from gakd.samplers.writing import batches, writing_of


class Generation(NamedTuple):
    """One response."""

    ids: list[int]  # without the token that ended it
    end: int | None = None  # the token that ended it; None where max_new_tokens cut it before

    @property
    def finished(self) -> bool:
        return self.end is not None

    @property
    def response_ids(self) -> list[int]:
        """As a response to train on or to score: with its end where it came to one."""
        return self.ids if self.end is None else [*self.ids, self.end]


def generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    batch_size: int = 8,
    on_progress: Callable[[int], None] | None = None,
    max_length: int | None = None,
    vocab_size: int | None = None,
    *,
    ranks: Ranks = ALONE,
    dtype: torch.dtype | None = None,
    often: bool = False,
) -> list[Generation]:
    """One response per prompt (token ids), in the order of the prompts.

    None is longer than fits `max_length` tokens of prompt and response, nor the model's own window, where its configuration
    names one: nothing is drawn that is cut off again. Near the window prompts of one length share a batch. Of a head wider
    than `vocab_size` the tokens beyond are not drawn.

    The same seed, prompts and batch size give the same responses, however many `ranks` the batches are dealt to: each batch
    has a seed of its own, the first that of `sampling`. What the checkpoint's own generation config asks for
    (top-k 20 at Qwen3, a repetition penalty at Qwen2.5) is not applied: tokens come from the model's distribution,
    changed by `sampling` alone. It stops at every end that the model's generation config, the tokenizer and its template
    know (`end_ids`). `on_progress` is called after each batch with the number of prompts in it. A model that
    is sharded over ranks (`fully_shard`) takes the steps of the longest response among them, so each rank calls this
    with equally many batches.

    On a GPU weights are in bf16 while it writes, or in `dtype` (`copies.writing`). `often` is for who writes at every step
    of a run: the copy stays, and decode steps are compiled where the model can be (`static_cache`). Raises ValueError for an
    empty prompt, and for one that fills the window.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    check_prompts(prompts)
    base, device = base_of(model), device_of(model)
    ends, way = end_ids(tokenizer, model), writing_of(model)
    config = generation_config(tokenizer, sampling, ends)
    config.use_cache = way.cached
    if vocab_size is not None:
        width = cast(Any, base).get_output_embeddings().weight.shape[0]
        config.suppress_tokens = list(range(vocab_size, width)) or None
    window = window_of_config(base.config)
    near = window is not None and _longest_text(prompts, sampling, max_length) > window
    dealt = ranks.own(batches([model], prompts, batch_size, one_length=near), is_sharded(base))
    responses: dict[int, Generation] = {}
    with writing(model, dtype, keep=often) as writer, evaluating(writer), _generation_config(writer, config):
        for number, indices in dealt:
            own = [prompts[index] for index in indices]
            config.max_new_tokens = room(own, sampling, max_length, window)
            compiled = batch_size if often and way.cached and static_cache.serves(writer) else None
            rows = write_batch(writer, config, own, device, batch_seed(sampling.seed, number), compiled)
            responses |= {index: _cut(ids, ends) for index, ids in zip(indices, rows, strict=True)}
            if on_progress is not None:
                on_progress(len(indices))
    responses = ranks.together(responses)
    return [responses[index] for index in range(len(prompts))]


def _longest_text(prompts: Sequence[Sequence[int]], sampling: Sampling, max_length: int | None) -> int:
    longest = max(map(len, prompts), default=0) + sampling.max_new_tokens
    return longest if max_length is None else min(longest, max(max_length, *map(len, prompts), 0))


def room(prompts: Sequence[Sequence[int]], sampling: Sampling, max_length: int | None, window: int | None) -> int:
    """Tokens that a batch may be continued by: as the shortest prompt needs, and as the window allows the longest."""
    shortest, longest = min(map(len, prompts)), max(map(len, prompts))
    if window is not None and longest >= window:
        raise ValueError(
            f"a prompt of {longest} tokens fills the model's window of {window}: lower --max-prompt-length"
        )
    limits = [sampling.max_new_tokens]
    limits += [] if max_length is None else [max(max_length - shortest, 1)]
    limits += [] if window is None else [window - longest]
    return min(limits)


def generation_config(tokenizer: PreTrainedTokenizerBase, sampling: Sampling, ends: Sequence[int]) -> GenerationConfig:
    """The transformers configuration of a `Sampling`: top-k off, no penalties, the ends that are given."""
    greedy = sampling.temperature == 0
    config = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=not greedy,
        no_repeat_ngram_size=0,
        repetition_penalty=1.0,
        eos_token_id=list(ends),
        pad_token_id=padding_id(tokenizer),
        use_cache=True,
    )
    if not greedy:  # transformers warns of sampling settings beside do_sample=False
        config.temperature, config.top_p, config.top_k = sampling.temperature, sampling.top_p, 0
    return config


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The padding token; without one the end of text takes its place, masks go by lengths. ValueError where there is neither."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if isinstance(token, int):
            return token
    raise ValueError("batches are padded, and the tokenizer has neither padding nor end of text: set eos_token")


def check_prompts(prompts: Sequence[Sequence[int]]) -> None:
    """ValueError for an empty prompt."""
    if empty := [index for index, prompt in enumerate(prompts) if len(prompt) == 0]:
        raise ValueError(f"a prompt needs at least one token, got none at index {empty[0]}: render it first")


@contextmanager
def _generation_config(base: Any, config: GenerationConfig) -> Iterator[None]:
    """Replaces the model's own generation config: `generate` fills whatever it is not told from there."""
    own, base.generation_config = base.generation_config, config
    try:
        yield
    finally:
        base.generation_config = own


def _cut(ids: list[int], ends: Sequence[int]) -> Generation:
    """Ends a row of a batch at its first end; what follows it is padding."""
    place = next((place for place, token in enumerate(ids) if token in ends), None)
    return Generation(ids) if place is None else Generation(ids[:place], ids[place])


def decode(tokenizer: PreTrainedTokenizerBase, generations: Sequence[Generation]) -> list[str]:
    """Texts without special tokens and outer white space, as they are scored; of channels, what the last one says."""
    header = channel_header(tokenizer)
    ids = [_behind_last(generation.ids, header) for generation in generations]
    return [str(tokenizer.decode(own, skip_special_tokens=True)).strip() for own in ids]


def _behind_last(ids: list[int], header: list[int]) -> list[int]:
    """What follows the last place where `header` stands; all of `ids` where it stands nowhere."""
    width = len(header)
    places = [place for place in range(len(ids) - width + 1) if ids[place : place + width] == header] if header else []
    return ids[places[-1] + width :] if places else ids
