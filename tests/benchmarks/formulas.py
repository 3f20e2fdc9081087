"""The unfused formulas: textbook divergences on all logits at once, in fp32, differentiated by autograd.

Reverse KL is written as the release of GAKD writes it: softmax, then log(x + 1e-9). The others follow the papers' code
(DistiLLM, AKL, ABKD). Each returns losses `[N]` from student and teacher logits `[N, V]`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def forward_kl(student: Tensor, teacher: Tensor) -> Tensor:
    log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def reverse_kl(student: Tensor, teacher: Tensor) -> Tensor:
    q, p = student.softmax(-1), teacher.softmax(-1)
    return (q * (torch.log(q + 1e-9) - torch.log(p + 1e-9))).sum(-1)


def jensen_shannon(student: Tensor, teacher: Tensor, beta: float = 0.5) -> Tensor:
    log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
    log_m = torch.logsumexp(torch.stack([log_q + math.log(1 - beta), log_p + math.log(beta)]), 0)
    teacher_part = (log_p.exp() * (log_p - log_m)).sum(-1)
    return beta * teacher_part + (1 - beta) * (log_q.exp() * (log_q - log_m)).sum(-1)


def symmetric_kl(student: Tensor, teacher: Tensor) -> Tensor:
    return 0.5 * forward_kl(student, teacher) + 0.5 * reverse_kl(student, teacher)


def skew_forward_kl(student: Tensor, teacher: Tensor, alpha: float = 0.1) -> Tensor:
    q, p = student.softmax(-1), teacher.softmax(-1)
    return (p * (torch.log(p) - torch.log(alpha * p + (1 - alpha) * q))).sum(-1)


def skew_reverse_kl(student: Tensor, teacher: Tensor, alpha: float = 0.1) -> Tensor:
    q, p = student.softmax(-1), teacher.softmax(-1)
    return (q * (student.log_softmax(-1) - torch.log((1 - alpha) * p + alpha * q))).sum(-1)


def adaptive_kl(student: Tensor, teacher: Tensor, mu: float = 0.5) -> Tensor:
    log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
    q, p = log_q.exp(), log_p.exp()
    with torch.no_grad():
        ranked, order = p.sort(-1, descending=True)
        head_ranked = ranked.cumsum(-1) <= mu
        head_ranked[:, 0] = True
        head = torch.zeros_like(head_ranked).scatter_(-1, order, head_ranked)
        gap = (p - q).abs()
        head_gap, tail_gap = (gap * head).sum(-1), (gap * ~head).sum(-1)
        share = head_gap / (head_gap + tail_gap)
    return share * (p * (log_p - log_q)).sum(-1) + (1 - share) * (q * (log_q - log_p)).sum(-1)


def alpha_beta(student: Tensor, teacher: Tensor, alpha: float = 0.5, beta: float = 0.5) -> Tensor:
    q, p = student.softmax(-1), teacher.softmax(-1)
    both = alpha + beta
    first = p.pow(alpha) * q.pow(beta)
    return -(first - alpha / both * p.pow(both) - beta / both * q.pow(both)).sum(-1) / (alpha * beta)


def total_variation(student: Tensor, teacher: Tensor) -> Tensor:
    return 0.5 * (teacher.softmax(-1) - student.softmax(-1)).abs().sum(-1)


FORMULAS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    formula.__name__: formula
    for formula in (
        forward_kl, reverse_kl, jensen_shannon, symmetric_kl, skew_forward_kl, skew_reverse_kl, adaptive_kl, alpha_beta,
        total_variation,
    )
}  # fmt: skip
