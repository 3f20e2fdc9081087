"""Responses that student and teacher write together, token by token: MiniLLM's mixture and Speculative KD.

Both models read one left-padded batch of all prompts, each with its key-value cache, and a rule draws every token from
their two distributions. Student and teacher share a tokenizer; of heads that are padded to different widths, what both
have counts, as in the losses. An end that was drawn is kept and becomes a label; a response ends at
`max_length` tokens of prompt and response at the latest. What is drawn is a function of the seed, the step and the samples;
the caller's random numbers and the models' modes stay as they are.

Where a model is sharded over ranks (`fully_shard`), all ranks take the steps of the longest response among them, with
both models; each rank needs a sample.

On a GPU both write in bf16 (`copies.writing`), and importance weights are those of the probabilities that a text was drawn by.
Whether all responses are at their end is asked at every eighth token alone, since the host waits for the answer; what is
drawn behind an end is cut off. Decode steps are not compiled: two models and a rule take turns there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, TopPLogitsWarper

from gakd.data.ends import end_ids
from gakd.samplers.config import Sampling
from gakd.samplers.joint import Draw, roll_out
from gakd.samplers.protocol import Sample
from gakd.seeds import seed_of
from gakd.weights import Weight, weight_at


class TeacherMixedSampler:
    """Each token from `p~ = alpha p + (1 - alpha) q`, p the teacher's and q the student's probabilities given the same text.

    A sample's `weights` are `q(y_t) / p~(y_t)`, one for each response token and at most 1 / (1 - alpha); the weight of a
    text up to a token is their running product: `E_p~[prod_t w_t f(y)] = E_q[f(y)]`. MiniLLM's release uses single tokens'
    weights in place of the product, an approximation. p and q are both at the temperature of `sampling`: at 1, q is the
    student's own distribution; at any other, p~ mixes `softmax(logits / temperature)` of both and the weights correct to
    the student's at that temperature, not to its own. ValueError for an alpha outside [0, 1], for temperature 0, and for
    a top-p below 1, where weights of whole distributions are wrong. MiniLLM, arXiv 2306.08543, section 2.2.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        alpha: float,
        sampling: Sampling,
        max_length: int | None = None,
    ) -> None:
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha is the teacher's share of the mixture and lies in [0, 1], got {alpha}")
        if sampling.temperature == 0 or sampling.top_p != 1:
            raise ValueError(
                "importance weights need whole distributions: set temperature above 0 and top_p to 1, "
                f"got temperature={sampling.temperature:g}, top_p={sampling.top_p:g}"
            )
        self.student, self.teacher, self.tokenizer, self.alpha = student, teacher, tokenizer, alpha
        self.sampling, self.max_length = sampling, max_length
        self.truncated = 0.0  # share of the last call's responses that were cut

    def __call__(self, samples: Sequence[Sample], step: int) -> list[Sample]:
        sampling = replace(self.sampling, seed=seed_of(self.sampling.seed, step))
        rolled = roll_out(self.student, self.teacher, self.tokenizer, samples, sampling, self.max_length, self._draw)
        self.truncated = _truncated(rolled, end_ids(self.tokenizer, self.student, self.teacher))
        return [sample._replace(weights=notes) for sample, notes in rolled]

    def _draw(self, student_BV: Tensor, teacher_BV: Tensor) -> Draw:
        q_BV, p_BV = probabilities(student_BV, self.sampling), probabilities(teacher_BV, self.sampling)
        mixed_BV = self.alpha * p_BV + (1 - self.alpha) * q_BV
        token_B1 = torch.multinomial(mixed_BV, 1)
        return Draw(token_B1[:, 0], (q_BV.gather(1, token_B1) / mixed_BV.gather(1, token_B1))[:, 0])


class SpeculativeSampler:
    """The student proposes each token; the teacher replaces it unless it is among the teacher's `top_k` most probable.

    A proposal comes from the student's distribution under `sampling`, a replacement from the teacher's under
    `teacher_sampling` (its temperature and top-p; length and seed are those of `sampling`): `P(y) = q(y) [y in top-K] +
    (1 - q(top-K)) p(y)`. Ranks are those of the teacher's logits before temperature and top-p, and tokens that tie with the
    last rank count as in. (The release ranks after top-p, where all tokens outside the nucleus tie, and what it tests is a
    second draw of the student's instead of the proposal that it keeps.) `top_k` may be a schedule of the step, which is
    rounded: 0 gives the teacher's text, the size of the vocabulary the student's.
    `accepted` is the share of the last call's response tokens that the student wrote.

    Token by token, where the paper drafts blocks: all proposals before the first that is replaced stand, and those after it
    are thrown away and proposed anew, given the replacement. So each token that stays was proposed after exactly the text
    that stands before it, and since no token is added after a block that is accepted whole, the length of blocks
    changes speed alone. Speculative KD, arXiv 2410.11325, algorithm 1; its setting is top-K 25, temperature 0.5 and top-p 0.5
    for the student, 0.2 and 0.5 for the teacher. ValueError for a top-K below 0.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        top_k: Weight,
        sampling: Sampling,
        teacher_sampling: Sampling,
        max_length: int | None = None,
    ) -> None:
        self.student, self.teacher, self.tokenizer, self.top_k = student, teacher, tokenizer, top_k
        self.sampling, self.teacher_sampling, self.max_length = sampling, teacher_sampling, max_length
        self.truncated = 0.0  # share of the last call's responses that were cut
        self.accepted = 0.0

    def __call__(self, samples: Sequence[Sample], step: int) -> list[Sample]:
        top_k = round(weight_at(self.top_k, step, "top_k"))
        if top_k < 0:
            raise ValueError(f"top_k is a number of tokens, at least 0, got {top_k} at step {step}")
        sampling = replace(self.sampling, seed=seed_of(self.sampling.seed, step))

        def draw(student_BV: Tensor, teacher_BV: Tensor) -> Draw:
            proposal_B1 = torch.multinomial(probabilities(student_BV, self.sampling), 1)
            replacement_B1 = torch.multinomial(probabilities(teacher_BV, self.teacher_sampling), 1)
            rank_B1 = (teacher_BV > teacher_BV.gather(1, proposal_B1)).sum(1, keepdim=True)
            accepted_B1 = rank_B1 < top_k
            return Draw(torch.where(accepted_B1, proposal_B1, replacement_B1)[:, 0], accepted_B1[:, 0].float())

        rolled = roll_out(self.student, self.teacher, self.tokenizer, samples, sampling, self.max_length, draw)
        notes = [note for _, own in rolled for note in own]
        self.accepted = sum(notes) / max(len(notes), 1)
        self.truncated = _truncated(rolled, end_ids(self.tokenizer, self.student, self.teacher))
        return [sample for sample, _ in rolled]


def probabilities(logits_BV: Tensor, sampling: Sampling) -> Tensor:
    """What a `Sampling` draws from, `[B, V]`: softmax at its temperature, cut to the nucleus; one token's at temperature 0."""
    if sampling.temperature == 0:
        return torch.zeros_like(logits_BV).scatter(1, logits_BV.argmax(1, keepdim=True), 1.0)
    logits_BV = logits_BV / sampling.temperature
    if sampling.top_p < 1:
        logits_BV = TopPLogitsWarper(sampling.top_p)(cast(Any, None), logits_BV)
    return logits_BV.softmax(-1)


def _truncated(rolled: Sequence[tuple[Sample, list[float]]], ends: Sequence[int]) -> float:
    return sum(sample.response_ids[-1] not in ends for sample, _ in rolled) / max(len(rolled), 1)
