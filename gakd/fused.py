"""The fused engine: hidden states and head weights in, token losses and gradients out, one chunk of rows at a time.

For each chunk: both models' logits, log-softmax in fp32, every term's losses, the weighted sum of their gradients with
respect to the student's logits, and at once the products that carry it to the hidden states and the head. The gradient
is formed in the forward, nothing is recomputed, and no `[N, V]` tensor outlives its chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gakd.types import Head, TeacherOutput, TokenChunk, TokenTerm

CHUNK_BYTES = 64 * 2**20
MIN_CHUNK_ROWS = 128


def default_chunk_rows(vocab_size: int) -> int:
    """The smallest power of two of at least 128 rows whose fp32 logits fill 64 MiB.

    Below 128 rows the matrix products lose efficiency; above, time is flat and only memory grows.
    """
    rows = MIN_CHUNK_ROWS
    while rows * vocab_size * 4 < CHUNK_BYTES:
        rows *= 2
    return rows


@dataclass
class _Pass:
    """The arguments of one pass that autograd does not follow."""

    labels_N: Tensor
    terms: Sequence[TokenTerm]
    coefficients: dict[str, float]
    teacher: TeacherOutput | None
    scale: float
    softcap: float | None
    vocab_size: int
    chunk_rows: int


def token_losses(
    hidden_NH: Tensor,
    head: Head,
    labels_N: Tensor,
    terms: Sequence[TokenTerm],
    coefficients: dict[str, float],
    teacher: TeacherOutput | None = None,
    chunk_rows: int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of token terms, ready for backward, and each term's losses.

    Returns `sum_k c_k sum_n loss_kn`, a scalar whose gradient with respect to `hidden_NH`, the head's weight and bias
    is already formed (a frozen head's is skipped), and `{term.name: losses [N]}`, detached; both in fp32 (fp64 from an
    fp64 head). Terms whose coefficient is 0 are not computed. Heads of different padded width over the same tokenizer are
    cut to the shared vocabulary. Raises ValueError where rows and labels differ in number or a term lacks its teacher.
    """
    active = [term for term in terms if coefficients[term.name] != 0]
    vocab_size = _check(hidden_NH, head, labels_N, active, teacher)
    chunk_rows = chunk_rows or default_chunk_rows(vocab_size)
    needs_teacher = any(term.needs_teacher for term in active)
    spec = _Pass(
        labels_N,
        active,
        coefficients,
        teacher if needs_teacher else None,
        head.scale,
        head.softcap,
        vocab_size,
        chunk_rows,
    )
    loss, *losses = _FusedTokenLosses.apply(hidden_NH, head.weight, head.bias, spec)
    return loss, {term.name: losses_N for term, losses_N in zip(active, losses, strict=True)}


@torch.no_grad()
def token_values(
    hidden_NH: Tensor,
    head: Head,
    labels_N: Tensor,
    terms: Sequence[TokenTerm],
    teacher: TeacherOutput | None = None,
    chunk_rows: int | None = None,
) -> dict[str, Tensor]:
    """`{term.name: losses [N]}` without any gradient: for evaluation. Checks and cutting as in `token_losses`."""
    vocab_size = _check(hidden_NH, head, labels_N, terms, teacher)
    chunk_rows = chunk_rows or default_chunk_rows(vocab_size)
    sum_dtype = torch.promote_types(head.weight.dtype, torch.float32)
    losses = [labels_N.new_empty(len(labels_N), dtype=sum_dtype) for _ in terms]
    for start in range(0, len(labels_N), chunk_rows):
        rows = slice(start, start + chunk_rows)
        student_log_probs_NV, _ = _log_probs_(head.logits(hidden_NH[rows], vocab_size))
        chunk = TokenChunk(student_log_probs_NV, _teacher_log_probs(teacher, rows, vocab_size), labels_N[rows])
        for term, losses_N in zip(terms, losses, strict=True):
            losses_N[rows] = term.chunk_losses(chunk)
    return {term.name: losses_N for term, losses_N in zip(terms, losses, strict=True)}


def _check(
    hidden_NH: Tensor, head: Head, labels_N: Tensor, terms: Sequence[TokenTerm], teacher: TeacherOutput | None
) -> int:
    """The vocabulary size of the pass, or ValueError."""
    rows = len(hidden_NH)
    if labels_N.shape != (rows,):
        raise ValueError(
            f"one label a row: got hidden states of {rows} rows and labels of shape {tuple(labels_N.shape)}"
        )
    needing = [term.name for term in terms if term.needs_teacher]
    if not needing:
        return head.vocab_size
    if teacher is None:
        raise ValueError(f"{', '.join(needing)} compare with a teacher: pass a TeacherOutput, got None")
    if len(teacher.hidden_NH) != rows:
        raise ValueError(
            f"student and teacher must supervise the same rows: got {rows} and {len(teacher.hidden_NH)}; use one batch for both"
        )
    return min(head.vocab_size, teacher.head.vocab_size)


def _teacher_log_probs(teacher: TeacherOutput | None, rows: slice, vocab_size: int) -> Tensor | None:
    if teacher is None:
        return None
    return _log_probs_(teacher.head.logits(teacher.hidden_NH[rows], vocab_size))[0]


def _log_probs_(logits_NV: Tensor) -> tuple[Tensor, Tensor]:
    """Logits to log-probabilities in place, and the log-sum-exp `[N, 1]`; one way for both models, so that equal ones agree."""
    log_normalizer_N1 = logits_NV.logsumexp(-1, keepdim=True)
    return logits_NV.sub_(log_normalizer_N1), log_normalizer_N1


class _FusedTokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, spec: _Pass) -> Any:
        # Autocast would round the fp32 log-probabilities' products; the dtype of each product is chosen here instead.
        with torch.autocast(hidden_NH.device.type, enabled=False):
            return _FusedTokenLosses._forward(ctx, hidden_NH, weight_VH, bias_V, spec)

    @staticmethod
    def _forward(ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, spec: _Pass) -> Any:
        head = Head(weight_VH, bias_V, spec.scale, spec.softcap)
        needs_hidden, needs_weight, needs_bias, _ = ctx.needs_input_grad
        used_VH = weight_VH[: spec.vocab_size]
        # Sums over chunks are kept in fp32 (fp64 from an fp64 head): a bf16 accumulator loses the small late contributions.
        sum_dtype = torch.promote_types(weight_VH.dtype, torch.float32)
        hidden_gradient = torch.empty_like(hidden_NH) if needs_hidden else None
        weight_gradient = torch.zeros_like(weight_VH, dtype=sum_dtype) if needs_weight else None
        bias_gradient = torch.zeros_like(bias_V, dtype=sum_dtype) if needs_bias and bias_V is not None else None
        losses = [torch.empty(len(hidden_NH), dtype=sum_dtype, device=hidden_NH.device) for _ in spec.terms]

        for start in range(0, len(hidden_NH), spec.chunk_rows):
            rows = slice(start, start + spec.chunk_rows)
            chunk_NH = hidden_NH[rows].to(weight_VH.dtype)
            log_probs_NV, log_normalizer_N1 = _log_probs_(head.logits(chunk_NH, spec.vocab_size))
            teacher_log_probs_NV = _teacher_log_probs(spec.teacher, rows, spec.vocab_size)
            chunk = TokenChunk(log_probs_NV, teacher_log_probs_NV, spec.labels_N[rows])
            total_NV: Tensor | None = None
            for term, losses_N in zip(spec.terms, losses, strict=True):
                losses_N[rows], gradient_NV = term.losses_and_gradient(chunk)
                coefficient = spec.coefficients[term.name]
                total_NV = (
                    gradient_NV.mul_(coefficient) if total_NV is None else total_NV.add_(gradient_NV, alpha=coefficient)
                )
                del gradient_NV
            if total_NV is None:
                total_NV = torch.zeros_like(log_probs_NV)
            if spec.softcap is not None:  # d softcap(z)/dz = 1 - tanh(z / cap)^2
                total_NV *= 1 - ((log_probs_NV + log_normalizer_N1) / spec.softcap).square()
            if spec.scale != 1.0:
                total_NV *= spec.scale
            if bias_gradient is not None:
                bias_gradient[: spec.vocab_size] += total_NV.sum(0)
            total_NV = total_NV.to(weight_VH.dtype)
            if hidden_gradient is not None:
                hidden_gradient[rows] = total_NV @ used_VH
            if weight_gradient is not None:
                _add_product_(weight_gradient[: spec.vocab_size], total_NV.T, chunk_NH)

        loss = torch.zeros((), dtype=sum_dtype, device=hidden_NH.device)
        for term, losses_N in zip(spec.terms, losses, strict=True):
            loss = loss + spec.coefficients[term.name] * losses_N.sum()
        ctx.save_for_backward(hidden_gradient, weight_gradient, bias_gradient)
        ctx.dtypes = weight_VH.dtype, None if bias_V is None else bias_V.dtype
        ctx.mark_non_differentiable(*losses)
        return (loss, *losses)

    @staticmethod
    def backward(ctx: Any, loss_gradient: Tensor, *_: Tensor) -> Any:  # type: ignore[override]
        hidden_gradient, weight_gradient, bias_gradient = ctx.saved_tensors
        weight_dtype, bias_dtype = ctx.dtypes
        return (
            None if hidden_gradient is None else hidden_gradient * loss_gradient.to(hidden_gradient.dtype),
            None if weight_gradient is None else (weight_gradient * loss_gradient).to(weight_dtype),
            None if bias_gradient is None else (bias_gradient * loss_gradient).to(bias_dtype),
            None,
        )


def _add_product_(total: Tensor, left: Tensor, right: Tensor) -> None:
    """`total += left @ right` with an fp32 total."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total.add_(left @ right)
