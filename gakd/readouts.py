"""Readouts: what a discriminator sees of a model's next-token distribution, without a `[T, V]` tensor.

A discriminator of per-token logits starts with a linear map `E [R, V]`. Since `logits = scale * (W h + b)`,

    E logits = M h + o,   M = scale * E W  [R, H],   o = scale * E b  [R]

so M is formed once a step and every token costs `R H` instead of `V (H + R)`. All gradients are exact: of the live rows to
h, W and b (the student's phase), and of detached rows to E (the discriminator's). The norm of a gradient with respect to
the logits is `g^T (E E^T) g` with g the gradient at the readout: the Gram matrix `[R, R]` stands for a `[T, V]` gradient.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from gakd.types import Head


class Readout(Protocol):
    """What `Adversarial` asks of a readout; `owner` is "student" or "teacher", whose head is projected once a step."""

    def project(self, head: Head, owner: str) -> None:
        """Form what the step needs of a head, unless it is there already."""
        ...

    def live(self, hidden_NH: Tensor, head: Head, owner: str) -> Tensor:
        """Rows `[N, R]` whose gradient reaches hidden states and head, and not the readout's own parameters."""
        ...

    def detached(self, hidden_NH: Tensor, owner: str) -> Tensor:
        """The same rows, whose gradient reaches the readout's own parameters and nothing else; after `project`."""
        ...

    def squared_norm(self, gradient_BTR: Tensor) -> Tensor:
        """Squared norm `[B]` of d(score)/d(what is read, over all tokens), from the gradient at the readout."""
        ...

    def flush(self) -> None:
        """Carry the gradients of this step's projections to the parameters, and forget the projections."""
        ...


class _Formed(NamedTuple):
    """A product of the map: as computed from it, and as a leaf that gathers gradients over the step's micro-batches."""

    value: Tensor
    leaf: Tensor


class LogitReadout(nn.Module):
    """A linear map of the logits, `[N, R]`, through the factored path; centred or, as in the paper, raw.

    A distribution is its logits up to a constant, so a discriminator on raw logits can win on an offset that means nothing.
    Centred logits (minus their mean over the vocabulary) remove it and stay linear: `E_c = E - mean_v(E)`.

    `vocab_size` is the smaller of the two heads'. The entries of E start with variance 1/V: a readout is about as large as
    one logit. Raises ValueError for a head that soft-caps its logits (not linear) or is smaller than `vocab_size`.
    """

    def __init__(self, vocab_size: int, width: int = 256, centered: bool = False) -> None:
        super().__init__()
        self.centered = centered
        self.weight = nn.Parameter(torch.randn(width, vocab_size) / math.sqrt(vocab_size))
        self._map_RV: Tensor | None = None  # this step's E, with graph to the parameter
        self._formed: dict[str, _Formed] = {}

    def project(self, head: Head, owner: str) -> None:
        vocab_size = self.weight.shape[1]
        if head.softcap is not None:
            raise ValueError(
                f"a linear readout needs logits linear in the hidden state; the {owner}'s are soft-capped at {head.softcap}"
            )
        if head.vocab_size < vocab_size:
            raise ValueError(
                f"the readout maps {vocab_size} tokens, the {owner}'s head has {head.vocab_size}: build it with the smaller size"
            )
        if owner in self._formed:
            return
        weight_VH = head.weight.detach()[:vocab_size].to(self.weight.dtype)
        self._form(owner, lambda map_RV: map_RV @ weight_VH * head.scale)
        if head.bias is not None:
            bias_V = head.bias.detach()[:vocab_size].to(self.weight.dtype)
            self._form(f"{owner} offset", lambda map_RV: map_RV @ bias_V * head.scale)

    def live(self, hidden_NH: Tensor, head: Head, owner: str) -> Tensor:
        self.project(head, owner)
        projection_RH, offset_R = self._formed[owner], self._formed.get(f"{owner} offset")
        return _LiveRows.apply(
            hidden_NH, head.weight, head.bias, self._map().detach(), projection_RH.leaf.detach(),
            None if offset_R is None else offset_R.leaf.detach(), head.scale,
        )  # fmt: skip

    def detached(self, hidden_NH: Tensor, owner: str) -> Tensor:
        offset_R = self._formed.get(f"{owner} offset")
        return linear(
            hidden_NH.detach().to(self.weight.dtype),
            self._formed[owner].leaf,
            None if offset_R is None else offset_R.leaf,
        )

    def squared_norm(self, gradient_BTR: Tensor) -> Tensor:
        if "gram" not in self._formed:
            self._form("gram", lambda map_RV: map_RV @ map_RV.T)
        return ((gradient_BTR @ self._formed["gram"].leaf) * gradient_BTR).sum((1, 2))

    def flush(self) -> None:
        used = [formed for formed in self._formed.values() if formed.leaf.grad is not None]
        if used:
            torch.autograd.backward([formed.value for formed in used], [formed.leaf.grad for formed in used])
        self._formed, self._map_RV = {}, None

    def _map(self) -> Tensor:
        if self._map_RV is None:
            with torch.enable_grad():
                self._map_RV = self.weight - self.weight.mean(-1, keepdim=True) if self.centered else self.weight
        return self._map_RV

    def _form(self, name: str, product: Any) -> None:
        with torch.enable_grad(), torch.autocast(self.weight.device.type, enabled=False):
            value = product(self._map())
        self._formed[name] = _Formed(value, value.detach().requires_grad_())


def CenteredLogitReadout(vocab_size: int, width: int = 256) -> LogitReadout:
    """`LogitReadout` on logits minus their mean over the vocabulary, the default: blind to the offset."""
    return LogitReadout(vocab_size, width, centered=True)


class _LiveRows(torch.autograd.Function):
    """`M h + o` with M given: gradients to h, and through M to the student's head, which M was formed from."""

    @staticmethod
    def forward(
        ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, map_RV: Tensor,
        projection_RH: Tensor, offset_R: Tensor | None, scale: float,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(hidden_NH, map_RV, projection_RH)
        ctx.scale, ctx.weight, ctx.bias_dtype = (
            scale,
            (weight_VH.shape, weight_VH.dtype),
            bias_V is not None and bias_V.dtype,
        )
        with torch.autocast(hidden_NH.device.type, enabled=False):
            return linear(hidden_NH.to(projection_RH.dtype), projection_RH, offset_R)

    @staticmethod
    def backward(ctx: Any, gradient_NR: Tensor) -> Any:  # type: ignore[override]
        hidden_NH, map_RV, projection_RH = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias, *_ = ctx.needs_input_grad
        (head_size, width), dtype = ctx.weight
        vocab_size = map_RV.shape[1]
        hidden_gradient = (gradient_NR @ projection_RH).to(hidden_NH.dtype) if needs_hidden else None
        weight_gradient = bias_gradient = None
        if needs_weight:  # E^T (dM), zero on the padded end of a wider head
            weight_gradient = torch.zeros(head_size, width, dtype=dtype, device=map_RV.device)
            weight_gradient[:vocab_size] = map_RV.T @ (gradient_NR.T @ hidden_NH.to(map_RV.dtype) * ctx.scale)
        if needs_bias:
            bias_gradient = torch.zeros(head_size, dtype=ctx.bias_dtype, device=map_RV.device)
            bias_gradient[:vocab_size] = gradient_NR.sum(0) * ctx.scale @ map_RV
        return hidden_gradient, weight_gradient, bias_gradient, None, None, None, None
