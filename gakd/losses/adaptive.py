"""Adaptive KL: forward and reverse KL, weighed by where the models differ, in the teacher's head or outside it.

The head is found without a sort of the vocabulary. Conventions as in `functional.py`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

from gakd.losses.functional import forward_kl, forward_kl_with_gradient, reverse_kl

HEAD_SORTED = 64  # tokens about the edge of a head that are few enough to sort


def teacher_head(p_NV: Tensor, mu: float) -> Tensor:
    """`[N, V]` bool: the most probable tokens of a row, as many as sum to at most `mu`; the first always, ties together."""
    return p_NV >= _head_threshold(p_NV, mu)


def _head_threshold(p_NV: Tensor, mu: float) -> Tensor:
    """`[N, 1]`, at most the least probability in the head and above all outside.

    Searches the bits of the float, which order as non-negative floats do. Where values may be looked at, false position takes the
    place of most halvings, until few tokens are left between what fits and what does not: a sort of those tells.
    """
    integer = {4: torch.int32, 8: torch.int64}[p_NV.element_size()]
    highest_N1 = p_NV.amax(-1, keepdim=True)
    high_N1 = highest_N1.view(integer)  # the lowest threshold known to fit
    scratch_NV = torch.empty_like(p_NV)

    def sums(threshold_N1: Tensor) -> Tensor:
        """Of the tokens at or above; a mask of the tensor's own type is several times faster than one of bools."""
        torch.ge(p_NV, threshold_N1.view(p_NV.dtype), out=scratch_NV)
        return scratch_NV.mul_(p_NV).sum(-1, keepdim=True)

    if p_NV.device.type != "cpu" or type(p_NV) is not Tensor or torch.compiler.is_compiling():
        low_N1 = torch.zeros_like(high_N1)  # the highest known not to
        for _ in range(8 * p_NV.element_size() - 2):  # a probability is below 2: sign and highest exponent bit are 0
            middle_N1 = (low_N1 + high_N1) // 2
            fits_N1 = torch.where(p_NV >= middle_N1.view(p_NV.dtype), p_NV, 0.0).sum(-1, keepdim=True) <= mu
            high_N1, low_N1 = torch.where(fits_N1, middle_N1, high_N1), torch.where(fits_N1, low_N1, middle_N1)
        return high_N1.view(p_NV.dtype)

    total_N1 = p_NV.sum(-1, keepdim=True)
    # What is below cannot make up for the tail, whatever rounding does.
    low_N1 = ((total_N1 - mu).clamp_(min=0) * (0.9 / p_NV.shape[-1])).view(integer)
    high_N1 = torch.where(total_N1 <= mu, low_N1 + 1, high_N1)  # all tokens fit
    low_N1 = torch.where(highest_N1 > mu, high_N1 - 1, low_N1)  # no second one does
    low_sum_N1, high_sum_N1 = total_N1, sums(high_N1)
    low_excess_N1, high_excess_N1 = total_N1 - mu, high_sum_N1 - mu
    few = min(HEAD_SORTED, p_NV.shape[-1])
    for step in range(24 * p_NV.element_size()):
        # As many tokens in [low, high) would sum to as many times the least that they can be.
        wide_N1 = (low_sum_N1 - high_sum_N1) > (few - 0.5) * low_N1.view(p_NV.dtype)
        open_N1 = wide_N1 & (high_N1 - low_N1 > 1)
        if not open_N1.any():
            break
        share_N1 = 0.5 if step % 4 == 0 else low_excess_N1 / (low_excess_N1 - high_excess_N1)
        middle_N1 = low_N1 + ((high_N1 - low_N1) * share_N1).to(integer)
        middle_N1 = middle_N1.clamp(low_N1 + 1, high_N1 - 1)
        sum_N1 = sums(middle_N1)
        fits_N1 = sum_N1 <= mu
        falls_N1, rises_N1 = open_N1 & fits_N1, open_N1 & ~fits_N1
        high_N1, high_sum_N1 = torch.where(falls_N1, middle_N1, high_N1), torch.where(falls_N1, sum_N1, high_sum_N1)
        low_N1, low_sum_N1 = torch.where(rises_N1, middle_N1, low_N1), torch.where(rises_N1, sum_N1, low_sum_N1)
        # The Illinois rule: the end that stays counts half as much the next time.
        high_excess_N1 = torch.where(falls_N1, sum_N1 - mu, high_excess_N1 / 2)
        low_excess_N1 = torch.where(rises_N1, sum_N1 - mu, low_excess_N1 / 2)
    high_N1 = high_N1.view(p_NV.dtype)
    torch.lt(p_NV, high_N1, out=scratch_NV)
    left_NF = scratch_NV.mul_(p_NV).topk(few).values
    fits_NF = high_sum_N1 + left_NF.cumsum(-1) <= mu
    last_NF = left_NF > pad(left_NF[:, 1:], (0, 1), value=math.inf)  # of its equals
    return torch.where(fits_NF & last_NF, left_NF, high_N1).amin(-1, keepdim=True)


def _forward_share(gap_NV: Tensor, p_NV: Tensor, mu: float) -> Tensor:
    """`[N, 1]`, the head's share of `sum_v |p - q|`, which may be written to; half where there is nothing to share."""
    gap_N1 = gap_NV.sum(-1, keepdim=True)
    head_NV = p_NV.clone().ge_(_head_threshold(p_NV, mu))
    head_gap_N1 = gap_NV.mul_(head_NV).sum(-1, keepdim=True)
    tiny = torch.finfo(p_NV.dtype).tiny
    return (head_gap_N1 + tiny) / (gap_N1 + 2 * tiny)


def adaptive_kl(log_q_NV: Tensor, log_p_NV: Tensor, mu: float = 0.5) -> Tensor:
    """`w KL(p‖q) + (1 - w) KL(q‖p)`, w the share of `sum_v |p - q|` in the teacher's head (AKL, arXiv 2404.02657).

    The head is `teacher_head`, all tokens at `mu` = 1; w carries no gradient, and is half where p = q.
    """
    if mu == 1:
        return forward_kl(log_q_NV, log_p_NV)
    with torch.no_grad():
        p_NV = log_p_NV.exp()
        share_N = _forward_share((p_NV - log_q_NV.exp()).abs_(), p_NV, mu).squeeze(-1)
    return share_N * forward_kl(log_q_NV, log_p_NV) + (1 - share_N) * reverse_kl(log_q_NV, log_p_NV)


def adaptive_kl_with_gradient(
    log_q_NV: Tensor, log_p_NV: Tensor, q_NV: Tensor, p_NV: Tensor, mu: float
) -> tuple[Tensor, Tensor]:
    """Adaptive KL and `G = w (q - p) + (1 - w) q (log q - log p)`."""
    if mu == 1:
        return forward_kl_with_gradient(log_q_NV, log_p_NV, q_NV, p_NV)
    difference_NV = q_NV - p_NV
    share_N1 = _forward_share(difference_NV.abs(), p_NV, mu)
    log_ratio_NV = log_q_NV - log_p_NV
    forward_N = (log_ratio_NV * p_NV).sum(-1).neg_()
    reverse_NV = log_ratio_NV.mul_(q_NV)
    losses_N = torch.lerp(reverse_NV.sum(-1), forward_N, share_N1.squeeze(-1))
    return losses_N, reverse_NV.lerp_(difference_NV, share_N1)
