"""The fused engine: hidden states and head weights in, token losses and gradients out, one chunk of rows at a time.

For each chunk: both models' logits into buffers that the whole pass shares, `kernel.py` over their rows (log-softmax,
every term, the weighted sum of the gradients), and at once the products that carry it to the hidden states and the head.
The gradient is formed in the forward, nothing is recomputed, and no `[N, V]` tensor outlives its chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gakd.losses.checks import check_pass, refuse_labels
from gakd.losses.chunks import Chunk, chunks, default_chunk_rows, teacher_vocab_size
from gakd.losses.kernel import row_losses
from gakd.losses.row_pass import Kernel, row_pass
from gakd.losses.term import TokenTerm
from gakd.products import add_outer_, gradient_dtype, in_step_precision, project_back, result_dtype
from gakd.types import Head, RowValues, TeacherOutput


@dataclass
class _Pass:
    """The arguments of one pass that autograd does not follow."""

    labels_N: Tensor
    terms: Sequence[TokenTerm]
    coefficients: list[float]
    teacher: TeacherOutput | None
    scale: float
    softcap: float | None
    vocab_size: int  # of the student's, that any term sees
    compared: int  # of them, that terms which compare see
    chunk_rows: int
    kernel: Kernel
    normalizers: bool
    row_values: dict[str, Tensor]


class TokenPass(NamedTuple):
    """What one pass over the vocabulary gives."""

    loss: Tensor  # scalar, ready for one backward
    losses: dict[str, Tensor]  # term name -> [N]
    log_normalizers_N: Tensor | None  # log-sum-exp of the student's logits, where asked for
    teacher_log_normalizers_N: Tensor | None


def token_pass(
    hidden_NH: Tensor,
    head: Head,
    labels_N: Tensor,
    terms: Sequence[TokenTerm],
    coefficients: dict[str, float],
    teacher: TeacherOutput | None = None,
    chunk_rows: int | None = None,
    kernel: Kernel = "auto",
    normalizers: bool = False,
    row_values: RowValues | None = None,
) -> TokenPass:
    """Weighted sum of token terms, ready for backward, each term's losses, and the log-sum-exps if asked for.

    The loss is `sum_k c_k sum_n loss_kn`, a scalar whose gradient with respect to `hidden_NH`, the head's weight and bias
    is already formed (a frozen head's is skipped); losses and log-sum-exps are detached; all in fp32 (fp64 from an fp64
    head). Terms whose coefficient is 0 are not computed. Those that compare see heads of different padded width over the same
    tokenizer cut to the shared vocabulary; without one, neither is, and every term must do without it. A term without a
    teacher is over the student's whole head, whatever stands beside it. Where the teacher speaks
    about some rows only, the losses of its terms are 0 on the others. `kernel` as in `row_pass.row_pass`. One backward a
    call: the gradients are handed over, not kept. Raises ValueError where rows and labels differ in number, where a term
    lacks its teacher or the vocabulary that it shares, where log-sum-exps are asked of such a teacher, for a label beyond
    the head (on a CPU; a GPU would wait) and for a head in fp16, whose gradients overflow.
    """
    active = [term for term in terms if coefficients[term.name] != 0]
    teacher = teacher if normalizers or any(term.needs_teacher for term in active) else None
    compared = check_pass(hidden_NH, head, labels_N, active, teacher, normalizers)
    vocab_size = _seen(head, active, compared)
    order_N = _taught_first(teacher, len(hidden_NH))
    if order_N is not None:
        hidden_NH, labels_N = hidden_NH.index_select(0, order_N), labels_N[order_N]
    values = _ordered(row_values, order_N)
    spec = _Pass(
        labels_N,
        active,
        [coefficients[term.name] for term in active],
        _in_step_precision(teacher),
        head.scale,
        head.softcap,
        vocab_size,
        compared,
        chunk_rows or _default_chunk_rows(len(hidden_NH), vocab_size, teacher, hidden_NH.device),
        kernel,
        normalizers,
        values,
    )
    try:
        used_VH = in_step_precision(head.weight.detach())
        loss, student_N, teacher_N, *losses = _FusedTokenLosses.apply(hidden_NH, head.weight, head.bias, used_VH, spec)
    except (IndexError, RuntimeError) as error:  # asked about afterwards: asking first would wait for the device
        refuse_labels(labels_N, head, error)
        raise
    return TokenPass(loss, _named(active, losses, order_N), student_N, teacher_N)


@torch.no_grad()
def token_values(
    hidden_NH: Tensor,
    head: Head,
    labels_N: Tensor,
    terms: Sequence[TokenTerm],
    teacher: TeacherOutput | None = None,
    chunk_rows: int | None = None,
    row_values: RowValues | None = None,
) -> dict[str, Tensor]:
    """`{term.name: losses [N]}` without any gradient: for evaluation. Checks and cutting as in `token_pass`."""
    teacher = teacher if any(term.needs_teacher for term in terms) else None
    compared = check_pass(hidden_NH, head, labels_N, terms, teacher)
    vocab_size = _seen(head, terms, compared)
    order_N = _taught_first(teacher, len(hidden_NH))
    if order_N is not None:
        hidden_NH, labels_N = hidden_NH.index_select(0, order_N), labels_N[order_N]
    values = _ordered(row_values, order_N)
    chunk_rows = chunk_rows or _default_chunk_rows(len(hidden_NH), vocab_size, teacher, hidden_NH.device)
    sum_dtype = result_dtype(head.weight.dtype)
    head, teacher = head._replace(weight=in_step_precision(head.weight)), _in_step_precision(teacher)
    losses = [labels_N.new_zeros(len(labels_N), dtype=sum_dtype) for _ in terms]
    with torch.autocast(hidden_NH.device.type, enabled=False):
        for chunk in chunks(hidden_NH, head, teacher, vocab_size, chunk_rows, compared):
            own = _terms_of(chunk, terms)
            for rows, block in chunk.blocks():
                block_losses = row_losses(
                    *chunk.products(block),
                    labels_N[rows],
                    [terms[index] for index in own],
                    *chunk.shapes,
                    compared,
                    _at(values, rows),
                )
                for index, losses_N in zip(own, block_losses, strict=True):
                    losses[index][rows] = losses_N
    return _named(terms, losses, order_N)


def _seen(head: Head, terms: Sequence[TokenTerm], compared: int) -> int:
    """How many of the student's tokens a pass forms logits of: all, where a term is over the whole head."""
    return head.vocab_size if any(not term.needs_teacher for term in terms) else compared


def _default_chunk_rows(total: int, vocab_size: int, teacher: TeacherOutput | None, device: torch.device) -> int:
    widest = vocab_size if teacher is None else max(vocab_size, teacher_vocab_size(teacher, vocab_size))
    return default_chunk_rows(total, widest, device)


def _in_step_precision(teacher: TeacherOutput | None) -> TeacherOutput | None:
    """The same teacher, its head as the step multiplies with it."""
    if teacher is None:
        return None
    head = teacher.head._replace(weight=in_step_precision(teacher.head.weight))
    return TeacherOutput(teacher.hidden_NH, head, teacher.rows, teacher.shared_vocabulary)


def _taught_first(teacher: TeacherOutput | None, rows: int) -> Tensor | None:
    """The rows that the teacher speaks about, as it orders them, then the others; None where it speaks about all."""
    if teacher is None or teacher.rows is None:
        return None
    # A stable sort finds the others without waiting for the device, which `nonzero` would.
    taught_N = torch.zeros(rows, dtype=torch.uint8, device=teacher.rows.device).index_fill_(0, teacher.rows, 1)
    return torch.cat([teacher.rows, taught_N.argsort(stable=True)[: rows - len(teacher.rows)]])


def _ordered(row_values: RowValues | None, order_N: Tensor | None) -> dict[str, Tensor]:
    values = {} if row_values is None else row_values.values
    return values if order_N is None else {name: values_N[order_N] for name, values_N in values.items()}


def _at(row_values: dict[str, Tensor], rows: slice) -> dict[str, Tensor]:
    return {name: values_N[rows] for name, values_N in row_values.items()}


def _terms_of(chunk: Chunk, terms: Sequence[TokenTerm]) -> list[int]:
    """Indices of the terms that a chunk has what it takes for."""
    return [index for index, term in enumerate(terms) if chunk.teacher_NV is not None or not term.needs_teacher]


def _named(terms: Sequence[TokenTerm], losses: Sequence[Tensor], order_N: Tensor | None) -> dict[str, Tensor]:
    """The losses by name, their rows back in the order of the batch."""
    if order_N is not None:
        losses = [torch.empty_like(losses_N).index_copy_(0, order_N, losses_N) for losses_N in losses]
    return {term.name: losses_N for term, losses_N in zip(terms, losses, strict=True)}


class _FusedTokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, used_VH: Tensor, spec: _Pass
    ) -> Any:
        # Autocast would round the fp32 log-probabilities' products; the dtype of each product is chosen here instead.
        with torch.autocast(hidden_NH.device.type, enabled=False):
            return _FusedTokenLosses._forward(ctx, hidden_NH, weight_VH, bias_V, used_VH, spec)

    @staticmethod
    def _forward(
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, used_VH: Tensor, spec: _Pass
    ) -> Any:
        head = Head(used_VH, bias_V, spec.scale, spec.softcap)
        needs_hidden, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        seen_VH = used_VH[: spec.vocab_size]
        # Sums over chunks are kept in fp32 (fp64 from an fp64 head): a bf16 accumulator loses the small late contributions.
        sum_dtype = result_dtype(weight_VH.dtype)
        hidden_gradient = torch.zeros_like(hidden_NH) if needs_hidden else None
        weight_gradient = torch.zeros_like(weight_VH, dtype=sum_dtype) if needs_weight else None
        bias_gradient = torch.zeros_like(bias_V, dtype=sum_dtype) if needs_bias and bias_V is not None else None
        models = 1 + (spec.teacher is not None) if spec.normalizers else 0
        # Losses, then log-sum-exps, one value a row each.
        values = hidden_NH.new_zeros(len(spec.terms) + models, len(hidden_NH), dtype=sum_dtype)
        kernel, asked = row_pass(spec.kernel, hidden_NH.device), gradient_dtype(used_VH)

        wanted = len(values) > 0
        for chunk in (
            chunks(hidden_NH, head, spec.teacher, spec.vocab_size, spec.chunk_rows, spec.compared) if wanted else ()
        ):
            own = _terms_of(chunk, spec.terms)
            terms, coefficients = [spec.terms[index] for index in own], [spec.coefficients[index] for index in own]
            own += range(len(spec.terms), len(values))
            gradient_NV: Tensor = chunk.student_NV
            for rows, block in chunk.blocks():
                result = kernel(
                    *chunk.products(block), spec.labels_N[rows], terms, coefficients, *chunk.shapes, spec.normalizers,
                    spec.compared, _at(spec.row_values, rows), asked,
                )  # fmt: skip
                for index, own_N in zip(own, [*result.losses, *result.log_normalizers], strict=True):
                    values[index, rows] = own_N
                if result.gradient_NV is not None:
                    if bias_gradient is not None:
                        bias_gradient[: spec.vocab_size] += result.gradient_NV.sum(0, dtype=sum_dtype)
                    if len(result.gradient_NV) < len(gradient_NV):
                        gradient_NV[block] = result.gradient_NV  # the logits have been used up
                    else:
                        gradient_NV = result.gradient_NV
            if not terms:
                continue
            if hidden_gradient is not None:
                hidden_gradient[chunk.rows] = project_back(gradient_NV, seen_VH)
            if weight_gradient is not None:
                add_outer_(weight_gradient[: spec.vocab_size], gradient_NV, hidden_NH[chunk.rows])

        loss = torch.zeros((), dtype=sum_dtype, device=hidden_NH.device)
        losses = values[: len(spec.terms)].unbind()
        for coefficient, losses_N in zip(spec.coefficients, losses, strict=True):
            loss = loss + coefficient * losses_N.sum()
        student_N = values[len(spec.terms)] if models else None
        teacher_N = values[len(spec.terms) + 1] if models > 1 else None
        # Not saved for backward, which would keep a second reference: autograd then copies a gradient instead of taking it.
        ctx.gradients = hidden_gradient, weight_gradient, bias_gradient
        ctx.dtypes = weight_VH.dtype, None if bias_V is None else bias_V.dtype
        ctx.mark_non_differentiable(*(tensor for tensor in (student_N, teacher_N, *losses) if tensor is not None))
        return loss, student_N, teacher_N, *losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, loss_gradient: Tensor, *_: Tensor) -> Any:  # type: ignore[override]
        if ctx.gradients is None:
            raise RuntimeError("the gradients of this token pass were handed over by its first backward: run it again")
        (hidden_gradient, weight_gradient, bias_gradient), ctx.gradients = ctx.gradients, None
        weight_dtype, bias_dtype = ctx.dtypes
        return (
            None if hidden_gradient is None else hidden_gradient.mul_(loss_gradient.to(hidden_gradient.dtype)),
            None if weight_gradient is None else weight_gradient.mul_(loss_gradient).to(weight_dtype),
            None if bias_gradient is None else bias_gradient.mul_(loss_gradient).to(bias_dtype),
            None,
            None,
        )
