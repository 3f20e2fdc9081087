"""A readout of probabilities: the mean of an embedding under a model's next-token distribution.

    rows = sum_v p_v E_v = E p,   p = exp(logits - lse)

Unlike maps of logits it reads tokens by their mass, not thousands of tails. Softmax stands between hidden state and
row, so no product of E and W helps: every pass reads the logits of its rows again, a chunk at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from gakd.adversary.readouts.map_products import MapProducts
from gakd.adversary.readouts.protocol import known
from gakd.losses.chunks import chunks, default_chunk_rows
from gakd.types import Head


class ExpectedEmbedding(nn.Module):
    """`E p`, `[N, R]`; penalties are norms of gradients with respect to the probabilities, `g^T (E E^T) g`.

    E starts with entries of variance 1, or as `embeddings_VR`, say the input embeddings of the language model that is the
    discriminator; `trains` False leaves it there. `vocab_size` is the smaller of the two heads'. Raises ValueError for a head
    that is smaller, and where log-sum-exps are not given.
    """

    needs_log_normalizers = True
    student_map = None

    def __init__(
        self, vocab_size: int, width: int = 256, embeddings_VR: Tensor | None = None, trains: bool = True
    ) -> None:
        super().__init__()
        if embeddings_VR is not None and embeddings_VR.shape != (vocab_size, width):
            raise ValueError(
                f"embeddings of {vocab_size} tokens and width {width} expected, got {tuple(embeddings_VR.shape)}"
            )
        start_RV = torch.randn(width, vocab_size) if embeddings_VR is None else embeddings_VR.detach().T.contiguous()
        self.weight = nn.Parameter(start_RV, requires_grad=trains)
        self._products = MapProducts(self.weight)
        self._student: list[tuple[Head, Tensor]] = []  # head and rows of the micro-batch in hand

    def live(self, hidden_NH: Tensor, head: Head, step_rows: float, log_normalizers_N: Tensor | None = None) -> Tensor:
        self._check(head, "student")
        known_N = known(log_normalizers_N)
        rows_NR = _ExpectedRows.apply(hidden_NH, head.weight, head.bias, self.weight.detach(), known_N, head, None)
        frozen = head._replace(weight=head.weight.detach(), bias=None if head.bias is None else head.bias.detach())
        self._student = [(frozen, rows_NR.detach())]
        return rows_NR

    def detached(
        self, hidden_NH: Tensor, head: Head | None, step_rows: float, log_normalizers_N: Tensor | None = None
    ) -> Tensor:
        rows_NR = None
        if head is None:
            if not self._student:
                raise RuntimeError("this micro-batch has no student's rows: call `live` before `detached`")
            head, rows_NR = self._student.pop()
        self._check(head, "teacher")
        arguments = hidden_NH.detach(), head.weight.detach(), None, self.weight, known(log_normalizers_N), head, rows_NR
        return _ExpectedRows.apply(*arguments)

    def squared_norm(self, gradient_BTR: Tensor) -> Tensor:
        return self._products.squared_norm(gradient_BTR)

    def flush(self) -> None:
        self._products.flush()
        self._student = []

    def _check(self, head: Head, owner: str) -> None:
        if head.vocab_size < self.weight.shape[1]:
            raise ValueError(
                f"the readout embeds {self.weight.shape[1]} tokens, the {owner}'s head has {head.vocab_size}: "
                f"build it with the smaller size"
            )


class _ExpectedRows(torch.autograd.Function):
    """`E p` in chunks, or known rows; gradients to E, or to hidden states and head. `like` is the head beside its tensors."""

    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, map_RV: Tensor, known_N: Tensor, like: Head,
        rows_NR: Tensor | None,
    ) -> Tensor:  # fmt: skip
        head = like._replace(weight=weight_VH) if bias_V is None else like._replace(weight=weight_VH, bias=bias_V)
        if rows_NR is not None:
            rows_NR = rows_NR.clone()  # a Function may not return its input
        else:
            rows_NR = map_RV.new_zeros(len(hidden_NH), len(map_RV))
            with torch.autocast(hidden_NH.device.type, enabled=False):
                for rows, _, probs_NV in _probabilities(hidden_NH, head, known_N, map_RV):
                    rows_NR[rows] = probs_NV @ map_RV.T
        ctx.save_for_backward(hidden_NH, weight_VH, head.bias, map_RV, known_N, rows_NR)
        ctx.shape = like.shape
        return rows_NR

    @staticmethod
    def backward(ctx: Any, gradient_NR: Tensor) -> Any:  # type: ignore[override]
        hidden_NH, weight_VH, bias_V, map_RV, known_N, rows_NR = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias, needs_map, *_ = ctx.needs_input_grad
        head, size = Head(weight_VH, bias_V, *ctx.shape), map_RV.shape[1]
        hidden_gradient = torch.zeros_like(hidden_NH) if needs_hidden else None
        weight_gradient = torch.zeros_like(weight_VH, dtype=map_RV.dtype) if needs_weight else None
        bias_gradient = torch.zeros_like(bias_V, dtype=map_RV.dtype) if needs_bias and bias_V is not None else None
        map_gradient = torch.zeros_like(map_RV) if needs_map else None
        for rows, logits_NV, probs_NV in _probabilities(hidden_NH, head, known_N, map_RV):
            own_NR = gradient_NR[rows]
            if map_gradient is not None:
                map_gradient.addmm_(own_NR.T, probs_NV)
            if hidden_gradient is None and weight_gradient is None and bias_gradient is None:
                continue
            # d/d logits = p (g E - sum_v p_v g E_v), and that sum is g times the row itself.
            slope_NV = probs_NV * (own_NR @ map_RV - (own_NR * rows_NR[rows]).sum(-1, keepdim=True))
            slope_NV = head.shape.through_(slope_NV, logits_NV)
            if bias_gradient is not None:
                bias_gradient[:size] += slope_NV.sum(0)
            slope_NV = slope_NV.to(weight_VH.dtype)
            if hidden_gradient is not None:
                hidden_gradient[rows] = (slope_NV @ weight_VH[:size]).to(hidden_NH.dtype)
            if weight_gradient is not None:
                weight_gradient[:size] += slope_NV.T @ hidden_NH[rows].to(weight_VH.dtype)
        return (
            hidden_gradient,
            None if weight_gradient is None else weight_gradient.to(weight_VH.dtype),
            None if bias_gradient is None or bias_V is None else bias_gradient.to(bias_V.dtype),
            map_gradient, None, None, None,
        )  # fmt: skip


def _probabilities(
    hidden_NH: Tensor, head: Head, known_N: Tensor, map_RV: Tensor
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Rows, logits and probabilities in the map's precision, a chunk at a time."""
    size = map_RV.shape[1]
    for chunk in chunks(hidden_NH, head, None, size, default_chunk_rows(size, hidden_NH.device)):
        logits_NV = head.shape.logits(chunk.student_NV).to(map_RV.dtype)
        yield chunk.rows, logits_NV, (logits_NV - known_N[chunk.rows].unsqueeze(-1).to(map_RV.dtype)).exp()
