"""Token losses from whole float64 logits, differentiated by autograd: what the fused engine is held against."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy

from gakd import (
    AdaptiveKL,
    AlphaBeta,
    CrossEntropy,
    ForwardKL,
    JensenShannon,
    ReverseKL,
    SkewForwardKL,
    SkewReverseKL,
    TotalVariation,
    UniversalLogit,
)
from gakd.losses.term import TokenTerm
from tests.benchmarks.formulas import FORMULAS


def reverse_kl(student: Tensor, teacher: Tensor) -> Tensor:
    log_q, log_p = student.log_softmax(-1), teacher.log_softmax(-1)
    return (log_q.exp() * (log_q - log_p)).sum(-1)


def universal_logit(student: Tensor, teacher: Tensor) -> Tensor:
    q, p = (logits.softmax(-1).sort(-1, descending=True).values for logits in (student, teacher))
    return (q - p).abs().sum(-1)


class Case(NamedTuple):
    """A closed form, its formula on logits, and what bf16 operands may cost it: nats of the mean, 1 - cosine of gradients."""

    term: TokenTerm
    losses: Callable[[Tensor, Tensor, Tensor], Tensor]
    nats: float = 2e-4
    direction: float = 1e-4


def _compared(formula: Callable[..., Tensor], *arguments: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda student, teacher, labels: formula(student, teacher, *arguments)


# Cross entropy reads one rounded logit a row, whose error is of either sign: it is a mean over few rows here.
CASES = [
    Case(CrossEntropy(), lambda student, _, labels: cross_entropy(student, labels, reduction="none"), nats=2e-3),
    Case(ForwardKL(), _compared(FORMULAS["forward_kl"])),
    Case(ReverseKL(), _compared(reverse_kl)),
    Case(JensenShannon(0.5), _compared(FORMULAS["jensen_shannon"])),
    Case(SkewForwardKL(0.1), _compared(FORMULAS["skew_forward_kl"])),
    Case(SkewReverseKL(0.1), _compared(FORMULAS["skew_reverse_kl"])),
    Case(AdaptiveKL(0.5), _compared(FORMULAS["adaptive_kl"])),
    Case(AlphaBeta(0.5, 0.5), _compared(FORMULAS["alpha_beta"])),
    # Their gradients are signs of differences: rounding turns those near 0, of sorted probabilities many.
    Case(TotalVariation(), _compared(FORMULAS["total_variation"]), direction=1e-3),
    Case(UniversalLogit(), _compared(universal_logit), direction=3e-2),
]


class Rows(NamedTuple):
    hidden_NH: Tensor
    weight_VH: Tensor
    teacher_hidden_NH: Tensor
    teacher_weight_VH: Tensor
    labels_N: Tensor


def rows_on(device: torch.device) -> Rows:
    """fp32; logits of standard deviation 2.5, the teacher's 0.9 with the student's. Of 12 rows a mean is 4e-4 nats off."""
    count, vocabulary, width = (8, 512, 32) if device.type == "cpu" else (512, 151_936, 1024)
    generator = torch.Generator().manual_seed(0)
    hidden_NH = torch.randn(count, width, generator=generator)
    weight_VH, own_VH = (torch.randn(vocabulary, width, generator=generator) * 2.5 / width**0.5 for _ in range(2))
    labels_N = torch.randint(vocabulary, (count,), generator=generator)
    teacher_VH = 0.9 * weight_VH + (1 - 0.9**2) ** 0.5 * own_VH
    return Rows(*(tensor.to(device) for tensor in (hidden_NH, weight_VH, hidden_NH, teacher_VH, labels_N)))


class Found(NamedTuple):
    loss: float
    hidden_gradient: Tensor
    weight_gradient: Tensor


def exact(case: Case, rows: Rows) -> Found:
    """Of the mean over rows, in float64."""
    hidden_NH, weight_VH = (tensor.double().requires_grad_() for tensor in (rows.hidden_NH, rows.weight_VH))
    teacher_NV = rows.teacher_hidden_NH.double() @ rows.teacher_weight_VH.double().T
    loss = case.losses(hidden_NH @ weight_VH.T, teacher_NV, rows.labels_N).mean()
    return Found(loss.item(), *torch.autograd.grad(loss, (hidden_NH, weight_VH)))


def direction_lost(found: Tensor, expected: Tensor) -> float:
    """1 - cosine."""
    return 1 - cosine_similarity(found.double().flatten(), expected.double().flatten(), dim=0).item()
