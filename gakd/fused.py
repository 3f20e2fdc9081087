"""The fused engine: hidden states and head weights in, token losses and gradients out, one chunk of rows at a time.

For each chunk: both models' logits into buffers that the whole pass shares, `kernel.py` over their rows (log-softmax,
every term, the weighted sum of the gradients), and at once the products that carry it to the hidden states and the head.
The gradient is formed in the forward, nothing is recomputed, and no `[N, V]` tensor outlives its chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gakd.kernel import Kernel, block_rows, row_losses, row_pass
from gakd.types import Head, LogitShape, TeacherOutput, TokenTerm

# Matrix products lose efficiency below 128 rows; above, time is flat and only memory grows, until a GPU wants more work.
MIN_CHUNK_ROWS = 128
HEAD_SLICE = 2048  # tokens of the vocabulary, see `_product_into`
CHUNK_BYTES = {"cpu": 16 * 2**20, "cuda": 128 * 2**20}


def default_chunk_rows(vocab_size: int, device: torch.device) -> int:
    """The smallest power of two of at least 128 rows whose fp32 logits fill 16 MiB on a CPU, 128 MiB on a GPU."""
    rows = MIN_CHUNK_ROWS
    while rows * vocab_size * 4 < CHUNK_BYTES.get(device.type, CHUNK_BYTES["cuda"]):
        rows *= 2
    return rows


@dataclass
class _Pass:
    """The arguments of one pass that autograd does not follow."""

    labels_N: Tensor
    terms: Sequence[TokenTerm]
    coefficients: list[float]
    teacher: TeacherOutput | None
    scale: float
    softcap: float | None
    vocab_size: int
    chunk_rows: int
    kernel: Kernel


def token_losses(
    hidden_NH: Tensor,
    head: Head,
    labels_N: Tensor,
    terms: Sequence[TokenTerm],
    coefficients: dict[str, float],
    teacher: TeacherOutput | None = None,
    chunk_rows: int | None = None,
    kernel: Kernel = "auto",
) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of token terms, ready for backward, and each term's losses.

    Returns `sum_k c_k sum_n loss_kn`, a scalar whose gradient with respect to `hidden_NH`, the head's weight and bias
    is already formed (a frozen head's is skipped), and `{term.name: losses [N]}`, detached; both in fp32 (fp64 from an
    fp64 head). Terms whose coefficient is 0 are not computed. Heads of different padded width over the same tokenizer are
    cut to the shared vocabulary. `kernel` as in `kernel.row_pass`. One backward a call: the gradients are handed over,
    not kept. Raises ValueError where rows and labels differ in number or a term lacks its teacher.
    """
    active = [term for term in terms if coefficients[term.name] != 0]
    vocab_size = _check(hidden_NH, head, labels_N, active, teacher)
    spec = _Pass(
        labels_N,
        active,
        [coefficients[term.name] for term in active],
        teacher if any(term.needs_teacher for term in active) else None,
        head.scale,
        head.softcap,
        vocab_size,
        chunk_rows or default_chunk_rows(vocab_size, hidden_NH.device),
        kernel,
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
    teacher = teacher if any(term.needs_teacher for term in terms) else None
    chunk_rows = chunk_rows or default_chunk_rows(vocab_size, hidden_NH.device)
    sum_dtype = torch.promote_types(head.weight.dtype, torch.float32)
    losses = [labels_N.new_empty(len(labels_N), dtype=sum_dtype) for _ in terms]
    for chunk in _chunks(hidden_NH, head, teacher, vocab_size, chunk_rows):
        for rows, block in chunk.blocks():
            values = row_losses(*chunk.products(block), labels_N[rows], terms, *chunk.shapes)
            for losses_N, values_N in zip(losses, values, strict=True):
                losses_N[rows] = values_N
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


class _Chunk(NamedTuple):
    """Some rows of a pass: where they stand, and both models' products, views of buffers that the next chunk reuses."""

    rows: slice
    student_NV: Tensor
    teacher_NV: Tensor | None
    shapes: tuple[LogitShape, LogitShape]

    def blocks(self) -> Iterator[tuple[slice, slice]]:
        """Few rows at a time: their slice of the pass, and of the chunk."""
        rows, vocab_size = self.student_NV.shape
        size = block_rows(rows, vocab_size, self.student_NV.device)
        for start in range(0, rows, size):
            block = slice(start, min(start + size, rows))
            yield slice(self.rows.start + block.start, self.rows.start + block.stop), block

    def products(self, block: slice) -> tuple[Tensor, Tensor | None]:
        return self.student_NV[block], None if self.teacher_NV is None else self.teacher_NV[block]


def _chunks(
    hidden_NH: Tensor, head: Head, teacher: TeacherOutput | None, vocab_size: int, chunk_rows: int
) -> Iterator[_Chunk]:
    total = len(hidden_NH)
    buffer_NV = head.weight.new_empty(min(chunk_rows, total), vocab_size)
    teacher_buffer_NV = None if teacher is None else teacher.head.weight.new_empty(buffer_NV.shape)
    shapes = head.shape, head.shape if teacher is None else teacher.head.shape
    for start in range(0, total, chunk_rows):
        rows = slice(start, min(start + chunk_rows, total))
        student_NV = _product_into(buffer_NV[: rows.stop - start], hidden_NH[rows], head)
        teacher_NV = None
        if teacher is not None and teacher_buffer_NV is not None:
            teacher_NV = _product_into(teacher_buffer_NV[: rows.stop - start], teacher.hidden_NH[rows], teacher.head)
        yield _Chunk(rows, student_NV, teacher_NV, shapes)


def _product_into(product_NV: Tensor, hidden_NH: Tensor, head: Head) -> Tensor:
    """The head's product for a chunk, written into its buffer.

    On a CPU a slice of the head at a time and the other way round, `W h^T`, turned while it is in cache: with as few rows
    as a chunk has, threaded libraries are a third faster that way.
    """
    vocab_size = product_NV.shape[1]
    if product_NV.device.type != "cpu" or head.weight.dtype != torch.float32 or vocab_size < 2 * HEAD_SLICE:
        return head.product(hidden_NH, vocab_size, out=product_NV)
    hidden_HN = hidden_NH.to(head.weight.dtype).T.contiguous()
    slice_VN = product_NV.new_empty(HEAD_SLICE, len(hidden_NH))
    for start in range(0, vocab_size, HEAD_SLICE):
        part = slice(start, min(start + HEAD_SLICE, vocab_size))
        product_VN = torch.mm(head.weight[part], hidden_HN, out=slice_VN[: part.stop - start])
        product_NV[:, part] = product_VN.T
    return product_NV if head.bias is None else product_NV.add_(head.bias[:vocab_size])


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
        hidden_gradient = torch.zeros_like(hidden_NH) if needs_hidden else None
        weight_gradient = torch.zeros_like(weight_VH, dtype=sum_dtype) if needs_weight else None
        bias_gradient = torch.zeros_like(bias_V, dtype=sum_dtype) if needs_bias and bias_V is not None else None
        losses = [torch.zeros(len(hidden_NH), dtype=sum_dtype, device=hidden_NH.device) for _ in spec.terms]
        kernel = row_pass(spec.kernel, hidden_NH.device)

        for chunk in _chunks(hidden_NH, head, spec.teacher, spec.vocab_size, spec.chunk_rows) if spec.terms else ():
            for rows, block in chunk.blocks():
                labels_N = spec.labels_N[rows]
                values, gradient_NV = kernel(
                    *chunk.products(block), labels_N, spec.terms, spec.coefficients, *chunk.shapes
                )
                for losses_N, values_N in zip(losses, values, strict=True):
                    losses_N[rows] = values_N
                if bias_gradient is not None:
                    bias_gradient[: spec.vocab_size] += gradient_NV.sum(0)
                chunk.student_NV[block] = gradient_NV  # the logits have been used up
            if hidden_gradient is not None:
                hidden_gradient[chunk.rows] = chunk.student_NV @ used_VH
            if weight_gradient is not None:
                chunk_NH = hidden_NH[chunk.rows].to(weight_VH.dtype)
                _add_product_(weight_gradient[: spec.vocab_size], chunk.student_NV.T, chunk_NH)

        loss = torch.zeros((), dtype=sum_dtype, device=hidden_NH.device)
        for coefficient, losses_N in zip(spec.coefficients, losses, strict=True):
            loss = loss + coefficient * losses_N.sum()
        # Not saved for backward, which would keep a second reference: autograd then copies a gradient instead of taking it.
        ctx.gradients = hidden_gradient, weight_gradient, bias_gradient
        ctx.dtypes = weight_VH.dtype, None if bias_V is None else bias_V.dtype
        ctx.mark_non_differentiable(*losses)
        return (loss, *losses)

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
        )


def _add_product_(total: Tensor, left: Tensor, right: Tensor) -> None:
    """`total += left @ right` with an fp32 total."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total.add_(left @ right)
