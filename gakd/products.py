"""Products of a head: operands in the precision of the step, results and sums in fp32. Imports torch only.

A tensor core multiplies two bfloat16 numbers exactly and adds in fp32, so on a GPU only the operands are rounded, never a
result: a logit of 20 keeps its thousandths, which a bfloat16 result would lose. The dtype of the weight says what the
operands are: `in_step_precision` chooses it, the three products follow. On a CPU there is no such product; a weight in
bfloat16 is widened some rows at a time, exactly, and the other operand is not rounded at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

HEAD_SLICE = 2048  # tokens of the vocabulary that a CPU works on at a time


def result_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of a product's result: fp32, or fp64 of fp64."""
    return torch.promote_types(dtype, torch.float32)


def in_step_precision(weight: Tensor) -> Tensor:
    """A head's weight as the step multiplies with it: in bfloat16 under CUDA's autocast to that, else as it is.

    Under autocast to fp16, whose gradients overflow, as it is.
    """
    if weight.device.type == "cuda" and weight.dtype == torch.float32 and torch.is_autocast_enabled("cuda"):
        dtype = torch.get_autocast_dtype("cuda")
        return weight.to(dtype) if dtype == torch.bfloat16 else weight
    return weight


def gradient_dtype(weight: Tensor) -> torch.dtype:
    """Of a gradient with respect to logits: what the products with it take as an operand."""
    return result_dtype(weight.dtype) if weight.device.type == "cpu" else weight.dtype


def project(hidden_NH: Tensor, weight_VH: Tensor, out: Tensor | None = None) -> Tensor:
    """`hidden @ weight.T`, `[N, V]` in fp32 (fp64 of fp64), without gradient.

    On a CPU a slice of the head at a time and the other way round, `W h^T`, turned while it is in cache: with as few rows
    as a chunk has, threaded libraries are a third faster that way.
    """
    vocab_size, wide = len(weight_VH), result_dtype(weight_VH.dtype)
    if weight_VH.device.type != "cpu":
        return _mm(hidden_NH.to(weight_VH.dtype), weight_VH.T, out)
    if weight_VH.dtype == wide and (wide == torch.float64 or vocab_size < 2 * HEAD_SLICE):
        return torch.mm(hidden_NH.to(wide), weight_VH.T, out=out)
    product_NV = hidden_NH.new_empty(len(hidden_NH), vocab_size, dtype=wide) if out is None else out
    hidden_HN = hidden_NH.to(wide).T.contiguous()
    slice_VN = product_NV.new_empty(HEAD_SLICE, len(hidden_NH))
    for part in _slices(vocab_size):
        product_VN = torch.mm(weight_VH[part].to(wide), hidden_HN, out=slice_VN[: part.stop - part.start])
        product_NV[:, part] = product_VN.T
    return product_NV


def project_back(gradient_NV: Tensor, weight_VH: Tensor) -> Tensor:
    """`gradient @ weight`, `[N, H]` in fp32 (fp64 of fp64), without gradient."""
    if weight_VH.device.type != "cpu":
        return _mm(gradient_NV.to(weight_VH.dtype), weight_VH)
    wide = result_dtype(weight_VH.dtype)
    if weight_VH.dtype == wide:
        return gradient_NV.to(wide) @ weight_VH
    total_NH = gradient_NV.new_zeros(len(gradient_NV), weight_VH.shape[1], dtype=wide)
    for part in _slices(len(weight_VH)):
        total_NH.addmm_(gradient_NV[:, part].to(wide), weight_VH[part].to(wide))
    return total_NH


def add_outer_(total_VH: Tensor, gradient_NV: Tensor, hidden_NH: Tensor) -> None:
    """`total += gradient.T @ hidden`, the total in fp32 (fp64), operands in the gradient's dtype."""
    hidden_NH = hidden_NH.to(gradient_NV.dtype)
    if gradient_NV.dtype == total_VH.dtype:
        total_VH.addmm_(gradient_NV.T, hidden_NH)
    elif gradient_NV.device.type == "cpu":
        total_VH.addmm_(gradient_NV.T.to(total_VH.dtype), hidden_NH.to(total_VH.dtype))
    else:
        torch.addmm(total_VH, gradient_NV.T, hidden_NH, out_dtype=total_VH.dtype, out=total_VH)


def projected(hidden_NH: Tensor, weight_VH: Tensor) -> Tensor:
    """`project` with gradients to both, for the few rows that are read without an engine."""
    return cast(Tensor, _Projected.apply(hidden_NH, weight_VH, in_step_precision(weight_VH.detach())))


class _Projected(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, weight_VH: Tensor, used_VH: Tensor) -> Tensor:
        ctx.save_for_backward(hidden_NH, used_VH)
        ctx.dtype = weight_VH.dtype
        with torch.autocast(hidden_NH.device.type, enabled=False):
            return project(hidden_NH, used_VH)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_NV: Tensor) -> Any:  # type: ignore[override]
        hidden_NH, used_VH = ctx.saved_tensors
        needs_hidden, needs_weight, _ = ctx.needs_input_grad
        gradient_NV = gradient_NV.to(gradient_dtype(used_VH))
        hidden_gradient = project_back(gradient_NV, used_VH).to(hidden_NH.dtype) if needs_hidden else None
        if not needs_weight:
            return hidden_gradient, None, None
        total_VH = torch.zeros_like(used_VH, dtype=result_dtype(used_VH.dtype))
        add_outer_(total_VH, gradient_NV, hidden_NH)
        return hidden_gradient, total_VH.to(ctx.dtype), None


def _mm(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    wide = result_dtype(left.dtype)
    if left.dtype == wide:
        return torch.mm(left, right, out=out)
    if out is None:
        return torch.mm(left, right, out_dtype=wide)
    return torch.mm(left, right, out_dtype=wide, out=out)


def _slices(vocab_size: int) -> Iterator[slice]:
    for start in range(0, vocab_size, HEAD_SLICE):
        yield slice(start, min(start + HEAD_SLICE, vocab_size))
