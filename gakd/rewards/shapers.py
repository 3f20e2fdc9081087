"""Shapers of rewards, `[B, T] -> [B, T]`: see `sources.py` for the order of a chain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from gakd.rewards.sources import Rollout, needed, on_mask, tokens_to_go


@dataclass(frozen=True)
class RewardToGo:
    """What follows from a token, its own reward included: `A_t = sum_{k >= t} gamma^(k - t) r_k`.

    Gaps between response tokens do not count. `gamma` 1 is the reward-to-go of MiniLLM's equation 2 (arXiv 2306.08543), its
    release takes 0.95; 0 changes nothing. Sums of doubling length: no power of gamma is ever divided by, and T positions
    take log2(T) additions. Raises ValueError where gamma is not in [0, 1].
    """

    gamma: float

    def __post_init__(self) -> None:
        check_discount(self.gamma)

    def __call__(self, rewards_BT: Tensor, rollout: Rollout) -> Tensor:
        packed_BT, order_BT = packed(rewards_BT, rollout)
        length, factor = 1, self.gamma
        while (
            length < packed_BT.shape[1] and factor > 0
        ):  # packed_BT holds discounted sums of the next `length` rewards
            packed_BT = packed_BT + factor * pad(packed_BT[:, length:], (0, length))
            length, factor = 2 * length, factor * factor
        return unpacked(packed_BT, order_BT)


@dataclass(frozen=True)
class LengthNormalize:
    """Divides by the remaining length: `A_t / (T - t + 1)` at token t of T, the token itself included.

    After `RewardToGo(1)` the mean reward from t on, which long responses do not lose by. As in MiniLLM's release, at every
    discount: tokens are counted, not discounted. Its equation 6 (arXiv 2306.08543) normalises what follows a token,
    `R_{t+1}`, and counts one token less than that sum has: `RewardToGo(1) >> LengthNormalize() >>
    SingleStepDecomposition(1)` gives the mean that it means, `1 / (T - t) sum_{k > t} r_k`.
    """

    def __call__(self, advantages_BT: Tensor, rollout: Rollout) -> Tensor:
        return on_mask(advantages_BT, rollout) / tokens_to_go(rollout).clamp(min=1)


@dataclass(frozen=True)
class SingleStepDecomposition:
    """The long part of a token's advantage, that of the next token: `A_t -> gamma A_{t+1}`, 0 at the last.

    For what a divergence handles in closed form. With `A_t = r_t + gamma A_{t+1}`, `r_t = log p_t - log q_t` and since
    `E[grad log q_t] = 0` after any prefix,

        E[A_t grad log q_t] = -grad KL(q_t‖p_t) + E[gamma A_{t+1} grad log q_t]

    (MiniLLM, arXiv 2306.08543, equation 3, gamma 1): so `TeacherLogRatio() >> RewardToGo(gamma) >>
    SingleStepDecomposition(gamma)` goes with the term `ReverseKL()` at the sampled prefixes, at weight 1, over the same
    tokens. MiniLLM's release adds that term to advantages that still hold r_t, and so counts it twice.
    Give it the gamma of `RewardToGo`. `Whiten` after it rescales this part alone.
    Raises ValueError where gamma is not in [0, 1].
    """

    gamma: float

    def __post_init__(self) -> None:
        check_discount(self.gamma)

    def __call__(self, advantages_BT: Tensor, rollout: Rollout) -> Tensor:
        packed_BT, order_BT = packed(advantages_BT, rollout)
        return unpacked(self.gamma * pad(packed_BT[:, 1:], (0, 1)), order_BT)


@dataclass(frozen=True)
class Clip:
    """`min(max(r_t, low), high)`; MiniLLM's release clips rewards to [-100, 100]. Raises ValueError where low > high.

    An infinite reward (a token that the teacher excludes) becomes a bound: clip before anything that sums.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"rewards are clipped to [low, high], got low={self.low}, high={self.high}")

    def __call__(self, rewards_BT: Tensor, rollout: Rollout) -> Tensor:
        return on_mask(on_mask(rewards_BT, rollout).clamp(self.low, self.high), rollout)


@dataclass(frozen=True)
class Whiten:
    """Mean 0 and variance 1 over all response tokens of the step: `(A_t - mean) / sqrt(variance + 1e-8)`.

    The mean is added again where `shift_mean` is False. `over_ranks` sums a tensor over all ranks; every rank then has to
    take part, also one without tokens. The rollout has to hold all sequences of the rank's step: two micro-batches
    whitened apart have two scales. A constant would move no expected gradient; the mean of the batch depends on what it is
    taken from, so the expected direction is that of unwhitened advantages up to O(1 / sequences). As in MiniLLM's release
    (arXiv 2306.08543), which counts padding among the tokens.
    """

    shift_mean: bool = True
    over_ranks: Callable[[Tensor], Tensor] | None = field(default=None, repr=False, compare=False)

    def __call__(self, advantages_BT: Tensor, rollout: Rollout) -> Tensor:
        over_ranks = self.over_ranks or torch.clone
        advantages_BT = on_mask(advantages_BT, rollout)
        own = torch.stack([rollout.mask_BT.sum().to(advantages_BT.dtype), advantages_BT.sum()])
        count, total = over_ranks(own).unbind()
        count = count.clamp(min=1)
        mean = total / count
        centered_BT = on_mask(advantages_BT - mean, rollout)
        variance = over_ranks(centered_BT.square().sum()) / count  # in two passes: E[A^2] - mean^2 cancels
        whitened_BT = centered_BT * (variance + 1e-8).rsqrt()
        return whitened_BT if self.shift_mean else on_mask(whitened_BT + mean, rollout)


@dataclass(frozen=True)
class GroupNormalize:
    """A sequence's reward against the others of its prompt: `(R - mean) / (std + 1e-4)`, R the sum of its rewards.

    The mean comes off at the last token and every reward is divided, so that `RewardToGo(1)` follows: from a reward at the
    last token alone it makes GRPO's advantage, the same at every token (arXiv 2402.03300, section 4.1.2). `std` divides by
    n - 1, as TRL and verl do. `scale=False` is Dr. GRPO's (arXiv 2503.20783): a group then weighs by the spread of its
    rewards. The mean holds the sequence itself, 1/n of it: without `scale` the expected gradient is (n - 1) / n that of the
    expected reward, exactly, and where all rewards of a group are equal at their last tokens, it is 0 to the bit.

    A group has to be in the rollout whole; sequences without response tokens count nowhere.
    Raises ValueError where the rollout has no groups, or a group a single sequence.
    """

    scale: bool = True

    def __call__(self, rewards_BT: Tensor, rollout: Rollout) -> Tensor:
        group_B = needed(rollout, "group_B", "GroupNormalize")
        rewards_BT, real_B = on_mask(rewards_BT, rollout), rollout.mask_BT.any(1)
        same_BB = (group_B[:, None] == group_B[None, :]) & real_B[:, None] & real_B[None, :]
        count_B = same_BB.sum(1)
        if lonely := group_B[count_B == 1].tolist():
            raise ValueError(
                f"a group is compared within itself, got a single sequence of group {sorted(lonely)[0]}: sample two or more"
                " responses a prompt, and shape them in one rollout"
            )
        total_B = rewards_BT.sum(1)
        differences_BB = torch.where(same_BB, total_B[:, None] - total_B[None, :], 0)  # exact zeros where rewards agree
        centered_B = differences_BB.sum(1) / count_B.clamp(min=1)
        moved_BT = torch.where(
            tokens_to_go(rollout) == 1, rewards_BT - total_B[:, None] + centered_B[:, None], rewards_BT
        )
        if not self.scale:
            return moved_BT
        squares_B = torch.where(same_BB, centered_B.square()[None, :], 0).sum(1)
        std_B = (squares_B / (count_B - 1).clamp(min=1)).sqrt()
        return moved_BT / (std_B[:, None] + 1e-4)


@dataclass(frozen=True)
class KLPenalty:
    """Keeps the student near another model: `r_t - weight k_t`, k an estimate of `KL(q‖ref)` after the prefix.

    With `d = log ref(y_t) - log q(y_t)` at the sampled token (Schulman, joschu.net/blog/kl-approx.html):

    - `k1 = -d`: unbiased, and so is the gradient of the reverse KL that a policy gradient makes of it
    - `k2 = d^2 / 2`: biased, to third order in log q - log ref
    - `k3 = exp(d) - 1 - d`: unbiased, never negative, but its variance has no bound where ref gives much more than q

    As a reward, k is a constant to the gradient, which then lacks `E[grad k]`. That is 0 for k1 alone: a token's own k3
    drives along `grad KL(q‖ref) - grad KL(ref‖q)`, which vanishes to first order at q = ref, its own k2 along
    `grad E[k2] - grad KL(q‖ref)` (compare arXiv 2510.01555). GRPO's k3 (arXiv 2402.03300, equation 4) is a loss, with the
    gradient of k itself. Against the teacher, k1 adds `weight` times `TeacherLogRatio()`.
    Raises ValueError for an unknown name, and where the rollout lacks the other model.
    """

    weight: float
    estimator: Literal["k1", "k2", "k3"] = "k1"
    against: Literal["reference", "teacher"] = "reference"

    def __post_init__(self) -> None:
        if self.estimator not in ("k1", "k2", "k3") or self.against not in ("reference", "teacher"):
            raise ValueError(
                "a KL penalty is estimated by k1, k2 or k3, against reference or teacher,"
                f" got estimator={self.estimator!r}, against={self.against!r}"
            )

    def __call__(self, rewards_BT: Tensor, rollout: Rollout) -> Tensor:
        other_BT = needed(rollout, f"{self.against}_log_probs_BT", "KLPenalty")
        ratio_BT = on_mask(other_BT, rollout) - on_mask(rollout.student_log_probs_BT, rollout)
        match self.estimator:
            case "k1":
                penalty_BT = -ratio_BT
            case "k2":
                penalty_BT = ratio_BT.square() / 2
            case _:
                penalty_BT = ratio_BT.expm1() - ratio_BT
        return on_mask(rewards_BT, rollout) - self.weight * penalty_BT


def packed(values_BT: Tensor, rollout: Rollout) -> tuple[Tensor, Tensor]:
    """Response tokens moved to the left of each row, in their order, zeros behind; and where each came from."""
    order_BT = (~rollout.mask_BT).to(torch.uint8).argsort(dim=1, stable=True)
    return on_mask(values_BT, rollout).gather(1, order_BT), order_BT


def unpacked(packed_BT: Tensor, order_BT: Tensor) -> Tensor:
    """Everything back where it came from."""
    return torch.empty_like(packed_BT).scatter(1, order_BT, packed_BT)


def check_discount(gamma: float) -> None:
    if not 0 <= gamma <= 1:
        raise ValueError(f"a discount lies in [0, 1], got gamma={gamma}")
