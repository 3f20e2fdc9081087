"""Rewards of sampled text, and the chain `source >> shaper >> shaper` that makes them advantages. Pure maths on tensors.

A policy gradient step raises `sum_t A_t log q(y_t)`, y sampled from the student q. A source gives each response token a
reward r_t; shapers (`shapers.py`) turn rewards into advantages A_t. The order of a chain:

- on rewards: `Clip`, `GroupNormalize`, `KLPenalty`
- `RewardToGo`, which makes advantages of rewards; without it a token answers for its own reward alone
- on advantages: `LengthNormalize`, `SingleStepDecomposition`, `Whiten`

Nothing here carries a gradient, and nothing reads what stands off the mask. Rewards are shaped for all sequences of an
optimizer step at once, before it is cut into micro-batches, so that no number depends on the cut.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Rollout(NamedTuple):
    """What rewards are made from: sampled text as every model sees it, without gradient.

    Response tokens may stand anywhere in a row, in their order, with gaps. What is off the mask is never read and may be
    anything, NaN included. Log-probabilities are those of the sampled tokens.
    """

    mask_BT: Tensor  # bool, True on response tokens, the end-of-text token included
    student_log_probs_BT: Tensor  # under the student that sampled the text, or the one that is updated
    teacher_log_probs_BT: Tensor | None = None
    reference_log_probs_BT: Tensor | None = None
    scores_B: Tensor | None = None  # a discriminator's, of whole responses
    group_B: Tensor | None = None  # int64: sequences of one prompt share a number


Shaper = Callable[[Tensor, Rollout], Tensor]


class Reward:
    """A source of rewards: `[B, T]` from a rollout, 0 off the mask. `reward >> shaper` is one too, and prints as written.

    A shaper is any function of `(rewards_BT, rollout)`. Raises TypeError where `>>` meets anything else.
    """

    def __call__(self, rollout: Rollout) -> Tensor:
        raise NotImplementedError

    def __rshift__(self, shaper: Shaper) -> Shaped:
        if isinstance(shaper, (Reward, type)) or not callable(shaper):
            got = shaper.__name__ if isinstance(shaper, type) else repr(shaper)
            raise TypeError(f"after >> stands a shaper, a function of (rewards_BT, rollout), got {got}")
        return Shaped(self, shaper)


@dataclass(frozen=True, repr=False)
class Shaped(Reward):
    """`reward >> shaper`."""

    reward: Reward
    shaper: Shaper

    def __call__(self, rollout: Rollout) -> Tensor:
        return self.shaper(self.reward(rollout), rollout)

    def __repr__(self) -> str:
        return f"{self.reward!r} >> {getattr(self.shaper, '__name__', repr(self.shaper))}"


@dataclass(frozen=True)
class TeacherLogRatio(Reward):
    """How much likelier the teacher finds a token: `r_t = scale (log p(y_t) - log q(y_t))`.

    `TeacherLogRatio() >> RewardToGo(1)` is the policy gradient of `-KL(Q‖P)` over whole texts (MiniLLM, arXiv 2306.08543,
    equation 2, whose constant -1 has no effect in expectation); its release divides by 0.5, which is `scale=2`. Without
    `RewardToGo` it is the on-policy distillation of tinker (discount 0): the gradient of `sum_t -KL(q_t‖p_t)` at the
    sampled prefixes, as if the prefixes did not depend on the student.
    Raises ValueError where the rollout has no teacher.
    """

    scale: float = 1.0

    def __call__(self, rollout: Rollout) -> Tensor:
        teacher_BT = on_mask(needed(rollout, "teacher_log_probs_BT", "TeacherLogRatio"), rollout)
        return self.scale * (teacher_BT - on_mask(rollout.student_log_probs_BT, rollout))


@dataclass(frozen=True)
class DiscriminatorScore(Reward):
    """A discriminator's score of the response, at its last token; 0 before it.

    `DiscriminatorScore() >> GroupNormalize() >> RewardToGo(1)` is the student's side of GAD (arXiv 2511.10643).
    Raises ValueError where the rollout has no scores.
    """

    def __call__(self, rollout: Rollout) -> Tensor:
        scores_B = needed(rollout, "scores_B", "DiscriminatorScore")
        if scores_B.shape != rollout.mask_BT.shape[:1]:
            raise ValueError(
                f"a discriminator gives one score a sequence, got {list(scores_B.shape)} for {len(rollout.mask_BT)}"
            )
        scores_BT = on_mask(scores_B.unsqueeze(1).expand_as(rollout.mask_BT), rollout)
        return torch.where(tokens_to_go(rollout) == 1, scores_BT, 0)


def on_mask(values_BT: Tensor, rollout: Rollout) -> Tensor:
    """The values of response tokens without gradient, at least in fp32, and 0 elsewhere; ValueError on another shape."""
    if values_BT.shape != rollout.mask_BT.shape:
        raise ValueError(
            f"expected one value a position, {list(rollout.mask_BT.shape)} as the mask, got {list(values_BT.shape)}"
        )
    values_BT = values_BT.detach()
    return torch.where(rollout.mask_BT, values_BT.to(torch.promote_types(values_BT.dtype, torch.float32)), 0)


def tokens_to_go(rollout: Rollout) -> Tensor:
    """int64 `[B, T]`: at a response token, how many are left, itself included (1 at the last); 0 off the mask."""
    return rollout.mask_BT.flip(1).cumsum(1).flip(1) * rollout.mask_BT


def needed(rollout: Rollout, name: str, by: str) -> Tensor:
    """What the rollout holds under that name; ValueError where it is None."""
    value = getattr(rollout, name)
    if value is None:
        raise ValueError(f"{by} reads {name}, but the rollout has none: fill it in when the text is sampled")
    return value
