"""The loop in which two models read the same text and a rule draws each next token from both their distributions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn
from transformers import PreTrainedTokenizerBase

from gakd.data.ends import end_ids
from gakd.models.mode import device_of, evaluating
from gakd.models.sharding import is_cut
from gakd.run.exchange import several
from gakd.samplers.batch_size import largest_batch, longest
from gakd.samplers.config import Sampling
from gakd.samplers.copies import writing
from gakd.samplers.generation import check_prompts, padding_id
from gakd.samplers.one_batch import batch_seed, left_padded, seeded
from gakd.samplers.protocol import Sample
from gakd.samplers.writing import batches, writing_of

CHECKED_EVERY = 8  # tokens, on a GPU


class Draw(NamedTuple):
    """One token of each response, and what its sampler keeps of it."""

    token_B: Tensor
    note_B: Tensor


Rule = Callable[[Tensor, Tensor], Draw]  # the student's and the teacher's logits [B, V], in fp32, to tokens


def roll_out(
    student: nn.Module,
    teacher: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    samples: Sequence[Sample],
    sampling: Sampling,
    max_length: int | None,
    rule: Rule,
) -> list[tuple[Sample, list[float]]]:
    """New responses and the rule's notes on their tokens.

    A loop of its own: in transformers' a rank that is done runs the model on, but not the logits processors, in which
    a second model would run. There, ranks that share a sharded teacher would wait for it for ever.
    """
    prompts = [sample.prompt_ids for sample in samples]
    check_prompts(prompts)
    rolled: dict[int, tuple[Sample, list[float]]] = {}
    size = largest_batch([student, teacher], longest(prompts), sampling.max_new_tokens) or max(len(prompts), 1)
    for number, indices in enumerate(batches([student, teacher], prompts, size)):
        indices = sorted(indices)
        own = [prompts[index] for index in indices]
        seeds = replace(sampling, seed=batch_seed(sampling.seed, number))
        responses = _roll_out_batch(student, teacher, tokenizer, own, seeds, max_length, rule)
        rolled.update(zip(indices, responses, strict=True))
    return [rolled[index] for index in range(len(prompts))]


def _roll_out_batch(
    student: nn.Module, teacher: nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]],
    sampling: Sampling, max_length: int | None, rule: Rule,
) -> list[tuple[Sample, list[float]]]:  # fmt: skip
    ends, pad = end_ids(tokenizer, student, teacher), padding_id(tokenizer)
    device, in_step = device_of(student), _in_step(student, teacher)
    ends_E = torch.tensor(ends, device=device)
    ids_BT, mask_BL = (tensor.to(device) for tensor in left_padded(prompts, pad))
    open_B = torch.ones(len(prompts), dtype=torch.bool, device=device)
    draws: list[Draw] = []
    every = _every(device)
    with (
        writing(student, keep=True) as one, writing(teacher, keep=True) as other, evaluating(one), evaluating(other),
        seeded(device, sampling.seed),
    ):  # fmt: skip
        readers = [_Reader(one, student), _Reader(other, teacher)]
        while len(draws) < sampling.max_new_tokens and (len(draws) % every or _any(open_B, in_step)):
            student_BV, teacher_BV = (reader.read(ids_BT, mask_BL) for reader in readers)
            shared = min(student_BV.shape[1], teacher_BV.shape[1])
            token_B, note_B = rule(student_BV[:, :shared], teacher_BV[:, :shared].to(device))
            token_B = token_B.where(open_B, pad)
            draws.append(Draw(token_B, note_B))
            open_B = open_B & ~torch.isin(token_B, ends_E)
            ids_BT, mask_BL = token_B[:, None], torch.cat([mask_BL, mask_BL.new_ones(len(prompts), 1)], 1)
    rows = zip(prompts, *(torch.stack(column, 1).tolist() for column in zip(*draws, strict=True)), strict=True)
    rolled = []
    for prompt, ids, notes in rows:
        length = next((place + 1 for place, token in enumerate(ids) if token in ends), len(ids))
        if max_length is not None:
            length = min(length, max(max_length - len(prompt), 1))
        rolled.append((Sample(prompt, ids[:length]), notes[:length]))
    return rolled


class _Reader:
    """A model that reads a left-padded batch, and then one token of each row after the other.

    One that hands out no key-value cache (recurrent models keep a state of their own kind), or whose cache makes another text
    of it (`writing_of`), reads all of the text anew.
    """

    def __init__(self, writer: Any, model: nn.Module) -> None:
        self.model, self.device = writer, device_of(model)
        self.cache, self.cached = None, writing_of(model).cached
        self.ids_BL: Tensor | None = None  # what was read

    def read(self, ids_BT: Tensor, mask_BL: Tensor) -> Tensor:
        """Logits of the next token, `[B, V]`, after T more tokens; the mask is that of all L so far."""
        self.ids_BL = ids_BT if self.ids_BL is None else torch.cat([self.ids_BL, ids_BT], 1)
        if not self.cached:
            ids_BT = self.ids_BL
        position_BL = (mask_BL.cumsum(1) - 1).clamp(min=0)  # padding on the left shifts nothing
        output = self.model(
            input_ids=ids_BT.to(self.device),
            attention_mask=mask_BL.to(self.device),
            position_ids=position_BL[:, -ids_BT.shape[1] :].to(self.device),
            past_key_values=self.cache,
            use_cache=self.cached,
            logits_to_keep=1,
        )
        self.cache = getattr(output, "past_key_values", None)
        self.cached = self.cache is not None
        return output.logits[:, -1].float()


def _in_step(*models: nn.Module) -> bool:
    """Whether a forward waits for the other ranks, since weights are gathered there."""
    return several() and any(is_cut(model) for model in models)


def _every(device: torch.device) -> int:
    """Tokens from one question whether all are done to the next: on a GPU the host waits for the answer."""
    return 1 if device.type == "cpu" else CHECKED_EVERY


def _any(open_B: Tensor, in_step: bool) -> bool:
    """Whether a response is still open, of this rank's or, in step, of any rank's."""
    count = open_B.sum()
    if in_step:
        distributed.all_reduce(count)
    return bool(count > 0)
