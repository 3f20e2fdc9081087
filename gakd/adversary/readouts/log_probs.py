"""A readout of log-probabilities: logits less their log-sum-exp, which the token pass has worked out already.

    E log_probs = E logits - lse (E 1)

so it costs what a readout of raw logits costs, and for the student's gradient through `lse`, `softmax(logits) W`, one more
pass over the vocabulary in the backward, chunk by chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gakd.adversary.readouts.logits import LogitReadout
from gakd.adversary.readouts.protocol import known
from gakd.losses.chunks import chunks, default_chunk_rows
from gakd.products import add_outer_, gradient_dtype, in_step_precision, project_back
from gakd.types import Head


class LogProbReadout(nn.Module):
    """A linear map of the log-probabilities, `[N, R]`: what a model says, and neither offset nor scale of its logits.

    Penalties are norms of gradients with respect to log-probabilities. `vocab_size` and errors as for `LogitReadout`;
    the log-sum-exps are those over these `vocab_size` tokens.
    """

    needs_log_normalizers = True
    student_map = None

    def __init__(self, vocab_size: int, width: int | None = None) -> None:
        super().__init__()
        self.logits = LogitReadout(vocab_size, width)
        self.width_is_open = width is None

    def draw(self, width: int) -> None:
        """Begin with a map of that width."""
        self.logits.draw(width)

    @property
    def width(self) -> int:
        return self.logits.width

    def live(self, hidden_NH: Tensor, head: Head, step_rows: float, log_normalizers_N: Tensor | None = None) -> Tensor:
        weight_RV = self.logits.weight
        known_N = known(log_normalizers_N)
        live_N = _LogNormalizers.apply(hidden_NH, head.weight, head.bias, known_N, head.scale, weight_RV.shape[1])
        rows_NR = self.logits.live(hidden_NH, head, step_rows)
        return rows_NR - live_N.unsqueeze(-1).to(rows_NR.dtype) * weight_RV.detach().sum(-1)

    def detached(
        self, hidden_NH: Tensor, head: Head | None, step_rows: float, log_normalizers_N: Tensor | None = None
    ) -> Tensor:
        rows_NR = self.logits.detached(hidden_NH, head, step_rows)
        known_N1 = known(log_normalizers_N).unsqueeze(-1).to(rows_NR.dtype)
        return rows_NR - known_N1 * self.logits.sum_R()

    def squared_norm(self, gradient_BTR: Tensor) -> Tensor:
        return self.logits.squared_norm(gradient_BTR)

    def flush(self) -> None:
        self.logits.flush()


class _LogNormalizers(torch.autograd.Function):
    """Known log-sum-exps `[N]`, with gradients `softmax(logits) W` to hidden states and `softmax(logits)^T h` to the head."""

    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, known_N: Tensor, scale: float,
        vocab_size: int,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(hidden_NH, in_step_precision(weight_VH), bias_V, known_N)
        ctx.dtype = weight_VH.dtype
        ctx.scale, ctx.vocab_size = scale, vocab_size
        return known_N.clone()

    @staticmethod
    def backward(ctx: Any, gradient_N: Tensor) -> Any:  # type: ignore[override]
        hidden_NH, used_VH, bias_V, known_N = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        head, size = Head(used_VH, bias_V, ctx.scale), ctx.vocab_size
        hidden_gradient = torch.zeros_like(hidden_NH) if needs_hidden else None
        weight_gradient = torch.zeros_like(used_VH, dtype=known_N.dtype) if needs_weight else None
        bias_gradient = torch.zeros_like(bias_V, dtype=known_N.dtype) if needs_bias and bias_V is not None else None
        for chunk in chunks(hidden_NH, head, None, size, default_chunk_rows(len(hidden_NH), size, hidden_NH.device)):
            logits_NV = head.shape.logits(chunk.student_NV)
            shares_NV = logits_NV.sub_(known_N[chunk.rows].unsqueeze(-1)).exp_()
            shares_NV.mul_((gradient_N[chunk.rows] * ctx.scale).unsqueeze(-1))
            if bias_gradient is not None:
                bias_gradient[:size] += shares_NV.sum(0)
            shares_NV = shares_NV.to(gradient_dtype(used_VH))
            if hidden_gradient is not None:
                hidden_gradient[chunk.rows] = project_back(shares_NV, used_VH[:size])
            if weight_gradient is not None:
                add_outer_(weight_gradient[:size], shares_NV, hidden_NH[chunk.rows])
        return (
            hidden_gradient,
            None if weight_gradient is None else weight_gradient.to(ctx.dtype),
            None if bias_gradient is None or bias_V is None else bias_gradient.to(bias_V.dtype),
            None, None, None,
        )  # fmt: skip
