"""Rows of a map of what is not linear in the hidden state, read through the logits, a chunk of rows at a time.

    rows = E r(z),   z = softcap(scale * (W h + b)),   r: what is read of the logits

No product of E and W helps, and no `[N, V]` tensor is kept: every pass forms the logits of its rows again. Passes: the
student's rows, their gradient to E, and their gradient to hidden states and head; the teacher's rows, and theirs to E.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gakd.adversary.readouts.map_products import gradient_of
from gakd.adversary.readouts.protocol import check_vocabulary
from gakd.losses.chunks import chunks, default_chunk_rows
from gakd.products import add_outer_, gradient_dtype, in_step_precision, project_back
from gakd.types import Head, LogitShape


class Reading(NamedTuple):
    """What a map reads of logits, and how gradients go back through that. Neither function writes to its arguments."""

    values: Callable[[Tensor, Tensor | None], Tensor]  # z [N, V] and its log-sum-exps [N, 1], if known, to r(z) [N, V]
    slope: Callable[[Tensor, Tensor, Tensor], Tensor]  # r(z), u [N, V] and u . r(z) [N, 1] to d(u . r(z)) / dz [N, V]


class DirectRows:
    """Rows of one map, for one micro-batch at a time.

    The map's gradient is not formed in the backward: a student's head that is sharded is whole only inside its forward
    and inside a `flush`. So detached rows are leaves, and the next `live` or `flush` brings their gradients home.
    """

    def __init__(self, weight_RV: nn.Parameter, reading: Reading) -> None:
        self.weight_RV, self.reading = weight_RV, reading
        self._student: list[Tensor] = []  # rows of the micro-batch in hand
        self._handed_out: list[_Leaf] = []

    def live(self, hidden_NH: Tensor, head: Head, log_normalizers_N: Tensor | None = None) -> Tensor:
        """The student's rows `[N, R]`, with gradient to hidden states and head; ValueError for a head too small."""
        check_vocabulary(head, "student", self.weight_RV.shape[1])
        self.flush()
        map_RV = self.weight_RV.detach()
        used = _detached(head)
        tensors = hidden_NH, head.weight, head.bias, used.weight, map_RV, log_normalizers_N
        rows_NR = _LiveRows.apply(*tensors, head.shape, self.reading)
        self._student = [self._leaf(rows_NR, hidden_NH, used, log_normalizers_N)]
        return rows_NR

    def detached(self, hidden_NH: Tensor, head: Head | None, log_normalizers_N: Tensor | None = None) -> Tensor:
        """Rows whose gradient reaches the map alone: the teacher's, or without a head the student's, after `live`."""
        if head is None:
            if not self._student:
                raise RuntimeError("this micro-batch has no student's rows: call `live` before `detached`")
            return self._student.pop()
        check_vocabulary(head, "teacher", self.weight_RV.shape[1])
        used = _detached(head)
        rows_NR = _read(hidden_NH.detach(), used, self.weight_RV.detach(), log_normalizers_N, self.reading)
        return self._leaf(rows_NR, hidden_NH, used, log_normalizers_N)

    @torch.no_grad()
    def flush(self) -> None:
        """Add the gradients of the rows to the map's, `dE = sum_n g_n r(z_n)^T`, and forget the rows."""
        for leaf_NR, hidden_NH, head, known_N in self._handed_out:
            if leaf_NR.grad is None:
                continue
            gradient_RV = gradient_of(self.weight_RV)
            with torch.autocast(hidden_NH.device.type, enabled=False):
                for rows, _, values_NV in _passes(hidden_NH, head, self.weight_RV, known_N, self.reading):
                    gradient_RV.addmm_(leaf_NR.grad[rows].T, values_NV)
        self._student, self._handed_out = [], []

    def _leaf(self, rows_NR: Tensor, hidden_NH: Tensor, head: Head, known_N: Tensor | None) -> Tensor:
        leaf_NR = rows_NR.detach()
        if self.weight_RV.requires_grad and torch.is_grad_enabled():
            leaf_NR.requires_grad_()
            self._handed_out.append(_Leaf(leaf_NR, hidden_NH.detach(), head, known_N))
        return leaf_NR


class _Leaf(NamedTuple):
    """Rows that a gradient arrives at, and what they were read from."""

    rows_NR: Tensor
    hidden_NH: Tensor
    head: Head
    log_normalizers_N: Tensor | None


class _LiveRows(torch.autograd.Function):
    """`E r(z)` with gradients to hidden states and head, and none to E."""

    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, used_VH: Tensor, map_RV: Tensor,
        known_N: Tensor | None, shape: LogitShape, reading: Reading,
    ) -> Tensor:  # fmt: skip
        rows_NR = _read(hidden_NH, Head(used_VH, bias_V, *shape), map_RV, known_N, reading)
        ctx.save_for_backward(hidden_NH, used_VH, bias_V, map_RV, known_N, rows_NR)
        ctx.shape, ctx.reading, ctx.dtype = shape, reading, weight_VH.dtype
        return rows_NR

    @staticmethod
    def backward(ctx: Any, gradient_NR: Tensor) -> Any:  # type: ignore[override]
        hidden_NH, used_VH, bias_V, map_RV, known_N, rows_NR = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        head, size = Head(used_VH, bias_V, *ctx.shape), map_RV.shape[1]
        # Zero on the padded end of a head that is wider than the map.
        hidden_gradient = torch.zeros_like(hidden_NH) if needs_hidden else None
        weight_gradient = torch.zeros_like(used_VH, dtype=map_RV.dtype) if needs_weight else None
        bias_gradient = torch.zeros_like(bias_V, dtype=map_RV.dtype) if needs_bias and bias_V is not None else None
        with torch.autocast(hidden_NH.device.type, enabled=False):
            along_N1 = (gradient_NR * rows_NR).sum(-1, keepdim=True)  # g . E r(z), which is (g E) . r(z)
            for rows, logits_NV, values_NV in _passes(hidden_NH, head, map_RV, known_N, ctx.reading):
                slope_NV = ctx.reading.slope(values_NV, gradient_NR[rows] @ map_RV, along_N1[rows])
                slope_NV = head.shape.through_(slope_NV, logits_NV)
                if bias_gradient is not None:
                    bias_gradient[:size] += slope_NV.sum(0)
                slope_NV = slope_NV.to(gradient_dtype(used_VH))
                if hidden_gradient is not None:
                    hidden_gradient[rows] = project_back(slope_NV, used_VH[:size])
                if weight_gradient is not None:
                    add_outer_(weight_gradient[:size], slope_NV, hidden_NH[rows])
        return (
            hidden_gradient,
            None if weight_gradient is None else weight_gradient.to(ctx.dtype),
            None if bias_gradient is None or bias_V is None else bias_gradient.to(bias_V.dtype),
            None, None, None, None, None,
        )  # fmt: skip


@torch.no_grad()
def _read(hidden_NH: Tensor, head: Head, map_RV: Tensor, known_N: Tensor | None, reading: Reading) -> Tensor:
    rows_NR = map_RV.new_empty(len(hidden_NH), len(map_RV))
    with torch.autocast(hidden_NH.device.type, enabled=False):
        for rows, _, values_NV in _passes(hidden_NH, head, map_RV, known_N, reading):
            rows_NR[rows] = values_NV @ map_RV.T
    return rows_NR


def _passes(
    hidden_NH: Tensor, head: Head, map_RV: Tensor, known_N: Tensor | None, reading: Reading
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Rows, logits and what is read of them, in the map's precision, a chunk at a time."""
    size = map_RV.shape[1]
    for chunk in chunks(hidden_NH, head, None, size, default_chunk_rows(len(hidden_NH), size, hidden_NH.device)):
        logits_NV = head.shape.logits(chunk.student_NV).to(map_RV.dtype)
        known_N1 = None if known_N is None else known_N[chunk.rows].unsqueeze(-1).to(map_RV.dtype)
        yield chunk.rows, logits_NV, reading.values(logits_NV, known_N1)


def _detached(head: Head) -> Head:
    """The head as the step multiplies with it, without gradient."""
    bias_V = None if head.bias is None else head.bias.detach()
    return head._replace(weight=in_step_precision(head.weight.detach()), bias=bias_V)
