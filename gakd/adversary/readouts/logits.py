"""A linear map of the logits, without a `[T, V]` tensor.

A discriminator of per-token logits starts with a linear map `E [R, V]`. Since `logits = scale * (W h + b)`,

    E logits = M h + o,   M = scale * E W  [R, H],   o = scale * E b  [R]

so M is formed once a step and every token costs `R H` instead of `V (H + R)`. All gradients are exact: of the live rows to
h, W and b (the student's phase), and of detached rows to E (the discriminator's). The norm of a gradient with respect to
the logits is `g^T (E E^T) g` with g the gradient at the readout: the Gram matrix `[R, R]` stands for a `[T, V]` gradient.

A step of few rows is cheaper the direct way, through its logits: `rows_that_pay` says how few. Where no head trains,
`frozen_heads.py` does without V altogether.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from gakd.adversary.readouts.map_products import MapProducts, map_of_logits
from gakd.adversary.readouts.protocol import DEFAULT_WIDTH, Owner, check_vocabulary, rows_that_pay
from gakd.types import Head


class LogitReadout(nn.Module):
    """A linear map of the logits, `[N, R]`; centred or, as in the paper, raw.

    A distribution is its logits up to a constant, so a discriminator on raw logits can win on an offset that means nothing.
    Centred logits (minus their mean over the vocabulary) remove it and stay linear: `E_c = E - mean_v(E)`.

    `vocab_size` is the smaller of the two heads'. The entries of E start with variance 1/V: a readout is about as large
    as one logit. `width` None is what the discriminator reads, 256 until an `Adversarial` has one. Raises ValueError for a
    head that is smaller than `vocab_size`, or that soft-caps its logits, which are not linear then:
    `SoftCappedLogitReadout` reads those.
    """

    needs_log_normalizers = False
    student_map = None

    def __init__(self, vocab_size: int, width: int | None = None, centered: bool = False) -> None:
        super().__init__()
        self.vocab_size, self.centered, self.width_is_open = vocab_size, centered, width is None
        self.draw(DEFAULT_WIDTH if width is None else width)
        self._student_logits: list[Tensor] = []  # of the micro-batch in hand, where the direct way was taken

    def draw(self, width: int) -> None:
        """Begin with a map of that width."""
        self.weight = map_of_logits(self.vocab_size, width)
        self._products = MapProducts(self.weight, self.centered)

    @property
    def width(self) -> int:
        return len(self.weight)

    def live(self, hidden_NH: Tensor, head: Head, step_rows: float, log_normalizers_N: Tensor | None = None) -> Tensor:
        self._check(head, "student")
        if self._direct(head, "student", step_rows):
            logits_NV = head.logits(hidden_NH, self.weight.shape[1]).to(self.weight.dtype)
            with torch.autocast(hidden_NH.device.type, enabled=False):
                self._student_logits = [logits_NV.detach()]
                return self._read(logits_NV, self.weight.detach(), self.sum_R().detach())
        projection_RH, offset_R = self._project(head, "student")
        mean_R = self._products.mean_R if self.centered else None
        offset_R = None if offset_R is None else offset_R.detach()
        return _LiveRows.apply(
            hidden_NH,
            head.weight,
            head.bias,
            self.weight.detach(),
            mean_R,
            projection_RH.detach(),
            offset_R,
            head.scale,
        )

    def detached(
        self, hidden_NH: Tensor, head: Head | None, step_rows: float, log_normalizers_N: Tensor | None = None
    ) -> Tensor:
        with torch.autocast(hidden_NH.device.type, enabled=False):
            if head is None and self._student_logits:
                return self._read(self._student_logits.pop(), self.weight, self.sum_R())
            if head is not None:
                self._check(head, "teacher")
                if self._direct(head, "teacher", step_rows):
                    logits_NV = Head(head.weight.detach(), head.bias, head.scale).logits(
                        hidden_NH, self.weight.shape[1]
                    )
                    return self._read(logits_NV.detach().to(self.weight.dtype), self.weight, self.sum_R())
                projection_RH, offset_R = self._project(head, "teacher")
            else:
                projection_RH, offset_R = self._products.of("student")
            return linear(hidden_NH.detach().to(self.weight.dtype), projection_RH, offset_R)

    def sum_R(self) -> Tensor:
        """`E 1`, the map's sum over the vocabulary, whose gradient `flush` brings home."""
        return self._products.sum_R()

    def squared_norm(self, gradient_BTR: Tensor) -> Tensor:
        return self._products.squared_norm(gradient_BTR)

    def flush(self) -> None:
        self._products.flush()
        self._student_logits = []

    def _check(self, head: Head, owner: Owner) -> None:
        if head.softcap is not None:
            raise ValueError(
                f"this readout needs logits linear in the hidden state; the {owner}'s are soft-capped at {head.softcap}: "
                "use SoftCappedLogitReadout, or logit_readout(...), which chooses"
            )
        check_vocabulary(head, owner, self.weight.shape[1])

    def _direct(self, head: Head, owner: Owner, step_rows: float) -> bool:
        return step_rows < rows_that_pay(len(self.weight), head.weight.shape[1], owner, head.weight.requires_grad)

    def _read(self, logits_NV: Tensor, weight_RV: Tensor, sum_R: Tensor) -> Tensor:
        rows_NR = linear(logits_NV, weight_RV)
        return rows_NR - logits_NV.mean(-1, keepdim=True) * sum_R if self.centered else rows_NR

    def _project(self, head: Head, owner: Owner) -> tuple[Tensor, Tensor | None]:
        vocab_size = self.weight.shape[1]
        bias_V = None if head.bias is None else head.bias.detach()[:vocab_size]
        return self._products.form(owner, head.weight.detach()[:vocab_size], bias_V, head.scale)


def CenteredLogitReadout(vocab_size: int, width: int | None = None) -> LogitReadout:
    """`LogitReadout` on logits minus their mean over the vocabulary, the default: blind to the offset."""
    return LogitReadout(vocab_size, width, centered=True)


class _LiveRows(torch.autograd.Function):
    """`M h + o` with M given: gradients to h, and through M to the student's head, which M was formed from."""

    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, map_RV: Tensor, mean_R: Tensor | None,
        projection_RH: Tensor, offset_R: Tensor | None, scale: float,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(hidden_NH, map_RV, mean_R, projection_RH)
        ctx.scale = scale
        ctx.weight = weight_VH.shape, weight_VH.dtype
        ctx.bias_dtype = None if bias_V is None else bias_V.dtype
        with torch.autocast(hidden_NH.device.type, enabled=False):
            return linear(hidden_NH.to(projection_RH.dtype), projection_RH, offset_R)

    @staticmethod
    def backward(ctx: Any, gradient_NR: Tensor) -> Any:  # type: ignore[override]
        hidden_NH, map_RV, mean_R, projection_RH = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        (head_size, width), dtype = ctx.weight
        vocab_size = map_RV.shape[1]
        hidden_gradient = (gradient_NR @ projection_RH).to(hidden_NH.dtype) if needs_hidden else None
        weight_gradient = bias_gradient = None
        if needs_weight:  # E^T (dM), zero on the padded end of a wider head
            weight_gradient = torch.zeros(head_size, width, dtype=map_RV.dtype, device=map_RV.device)
            projection_gradient_RH = gradient_NR.T @ hidden_NH.to(map_RV.dtype) * ctx.scale
            torch.mm(map_RV.T, projection_gradient_RH, out=weight_gradient[:vocab_size])
            if mean_R is not None:
                weight_gradient[:vocab_size] -= mean_R @ projection_gradient_RH
            weight_gradient = weight_gradient.to(dtype)
        if needs_bias:
            offset_gradient_R = gradient_NR.sum(0) * ctx.scale
            bias_gradient = torch.zeros(head_size, dtype=ctx.bias_dtype, device=map_RV.device)
            bias_gradient[:vocab_size] = offset_gradient_R @ map_RV
            if mean_R is not None:
                bias_gradient[:vocab_size] -= offset_gradient_R @ mean_R
        return hidden_gradient, weight_gradient, bias_gradient, None, None, None, None, None
