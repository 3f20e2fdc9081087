"""Products of a readout's map, formed once a step; their gradients come home in closed form, into one buffer.

For a map `E [R, K]` and columns `W [K, H]`: `M = E W`, and the Gram matrix `E E^T`. Each is a leaf that gathers gradients over
the step's micro-batches; then `dE = dM W^T + (dG + dG^T) E`, added in place. A centred map, `E - mean_k(E)`, is never
formed: `E_c W = E W - mean(E) (1^T W)` and `E_c E_c^T = E E^T - K mean(E) mean(E)^T`, and every gradient loses its mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

CONVERTED_ROWS = 8192  # of a head in another precision than the map, converted at a time


def map_of_logits(vocab_size: int, width: int) -> nn.Parameter:
    """A map's start, `[R, V]`: entries of variance 1/V, so that a readout is about as large as one logit."""
    return nn.Parameter(torch.randn(width, vocab_size) / math.sqrt(vocab_size))


def gradient_of(parameter: nn.Parameter) -> Tensor:
    """The gradient itself, to add to in place; zeros where there was none."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


class _Product(NamedTuple):
    leaf_RH: Tensor
    offset_R: Tensor | None
    columns_KH: Tensor
    bias_K: Tensor | None
    scale: float


class MapProducts:
    """Of one map, for one step at a time. `gram_constant_RR` is added to the Gram matrix."""

    def __init__(self, weight_RK: nn.Parameter, centered: bool = False, gram_constant_RR: Tensor | None = None) -> None:
        self.weight_RK, self.centered, self.gram_constant_RR = weight_RK, centered, gram_constant_RR
        self._formed: dict[str, _Product] = {}
        self._gram_RR: Tensor | None = None
        self._mean_R: Tensor | None = None
        self._sum_R: Tensor | None = None

    @property
    def mean_R(self) -> Tensor:
        """Of the map over its columns, this step."""
        if self._mean_R is None:
            self._mean_R = self.weight_RK.detach().mean(-1)
        return self._mean_R

    @torch.no_grad()
    def form(self, name: str, columns_KH: Tensor, bias_K: Tensor | None, scale: float) -> tuple[Tensor, Tensor | None]:
        """`scale * E W` and `scale * E b` as leaves, unless the step has them under this name already."""
        if name not in self._formed:
            # The student's forward may run in autocast, which would round a product of the bias to bfloat16.
            with torch.autocast(self.weight_RK.device.type, enabled=False):
                self._formed[name] = self._product(columns_KH, bias_K, scale)
        return self.of(name)

    def _product(self, columns_KH: Tensor, bias_K: Tensor | None, scale: float) -> _Product:
        weight_RK = self.weight_RK.detach()
        product_RH = weight_RK.new_zeros(len(weight_RK), columns_KH.shape[1])
        for part, part_PH in _converted(columns_KH, weight_RK.dtype):
            product_RH.addmm_(weight_RK[:, part], part_PH)
        offset_R = None if bias_K is None else weight_RK @ bias_K.to(weight_RK.dtype)
        if self.centered:
            product_RH.addr_(self.mean_R, columns_KH.sum(0, dtype=weight_RK.dtype), alpha=-1)
            if offset_R is not None and bias_K is not None:
                offset_R -= self.mean_R * bias_K.sum(dtype=weight_RK.dtype)
        leaf_RH = product_RH.mul_(scale).requires_grad_()
        offset_R = None if offset_R is None else offset_R.mul_(scale).requires_grad_()
        return _Product(leaf_RH, offset_R, columns_KH, bias_K, scale)

    def of(self, name: str) -> tuple[Tensor, Tensor | None]:
        """What `form` returned for this name in this step."""
        if name not in self._formed:
            raise RuntimeError(f"this step has formed no product for the {name}: call `live` before `detached`")
        return self._formed[name].leaf_RH, self._formed[name].offset_R

    def sum_R(self) -> Tensor:
        """`E 1` of the map as it is, not centred, as a leaf."""
        if self._sum_R is None:
            self._sum_R = self.weight_RK.detach().sum(-1).requires_grad_()
        return self._sum_R

    def squared_norm(self, gradient_BTR: Tensor) -> Tensor:
        """`sum_t g_t^T (E E^T) g_t`, `[B]`."""
        if self._gram_RR is None:
            with torch.no_grad():
                weight_RK = self.weight_RK.detach()
                gram_RR = weight_RK @ weight_RK.T
                if self.centered:
                    gram_RR.addr_(self.mean_R, self.mean_R, alpha=-weight_RK.shape[1])
                if self.gram_constant_RR is not None:
                    gram_RR += self.gram_constant_RR
            self._gram_RR = gram_RR.requires_grad_(self.weight_RK.requires_grad)
        return ((gradient_BTR @ self._gram_RR) * gradient_BTR).sum((1, 2))

    @torch.no_grad()
    def flush(self) -> None:
        """Add the gradients of this step's products to the map's, and forget the products."""
        weight_RK, size = self.weight_RK.detach(), self.weight_RK.shape[1]
        means_R = torch.zeros_like(weight_RK[:, 0])  # what centring takes off every column of the gradient
        for product in self._formed.values():
            gradient_RH = product.leaf_RH.grad
            if gradient_RH is not None:
                gradient_RH = gradient_RH * product.scale
                for part, part_PH in _converted(product.columns_KH, weight_RK.dtype):
                    self._gradient_RK[:, part].addmm_(gradient_RH, part_PH.T)
                if self.centered:
                    means_R += gradient_RH @ product.columns_KH.sum(0, dtype=weight_RK.dtype) / size
            if product.offset_R is not None and product.offset_R.grad is not None and product.bias_K is not None:
                offset_gradient_R = product.offset_R.grad * product.scale
                self._gradient_RK.addr_(offset_gradient_R, product.bias_K.to(weight_RK.dtype))
                if self.centered:
                    means_R += offset_gradient_R * product.bias_K.mean(dtype=weight_RK.dtype)
        if self._gram_RR is not None and self._gram_RR.grad is not None:
            gradient_RR = self._gram_RR.grad + self._gram_RR.grad.T
            self._gradient_RK.addmm_(gradient_RR, weight_RK)
            if self.centered:
                means_R += gradient_RR @ self.mean_R
        if self._sum_R is not None and self._sum_R.grad is not None:
            self._gradient_RK.add_(self._sum_R.grad.unsqueeze(-1))
        if self.centered and self.weight_RK.grad is not None:
            self.weight_RK.grad.sub_(means_R.unsqueeze(-1))
        self._formed, self._gram_RR, self._mean_R, self._sum_R = {}, None, None, None

    @property
    def _gradient_RK(self) -> Tensor:
        return gradient_of(self.weight_RK)


def _converted(columns_KH: Tensor, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """The columns in the map's precision: at once where they have it, else some rows at a time, never a whole copy."""
    step = len(columns_KH) if columns_KH.dtype == dtype else CONVERTED_ROWS
    for start in range(0, len(columns_KH), step):
        part = slice(start, start + step)
        yield part, columns_KH[part].to(dtype)
