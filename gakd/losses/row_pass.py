"""Which of the kernels runs the row pass: Triton's, torch's compiler's, or the eager one that both are measured by."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

from gakd.losses.compiled import CompiledRows
from gakd.losses.formula import formulas_of
from gakd.losses.kernel import RowResult, row_losses_and_gradient
from gakd.losses.term import TokenTerm
from gakd.machine import has_triton
from gakd.types import LogitShape

Kernel = Literal["auto", "eager", "compiled", "triton"]
KERNELS = ("auto", "eager", "compiled", "triton")
triton_failures: list[str] = []  # of this process; the first is the last


class RowPass(Protocol):
    """`row_losses_and_gradient`, the gradient in `gradient_dtype` (None: fp32, fp64 of fp64 logits) or written to `out_NV`.

    `out_NV` is `[N, V]` of any dtype, and may be the student's product itself, whose logits are then used up.
    """

    def __call__(
        self, product_NV: Tensor, teacher_product_NV: Tensor | None, labels_N: Tensor, terms: Sequence[TokenTerm],
        coefficients: Sequence[float], shape: LogitShape, teacher_shape: LogitShape, normalizers: bool = False,
        compared: int | None = None, row_values: dict[str, Tensor] | None = None,
        gradient_dtype: torch.dtype | None = None, out_NV: Tensor | None = None,
    ) -> RowResult: ...  # fmt: skip


def row_pass(kernel: Kernel, device: torch.device) -> RowPass:
    """The row pass of a kernel.

    `triton` is one kernel where every term has a formula (`formula.py`) and the compiled pass elsewhere; `auto` is that on
    CUDA where Triton is installed, and eager elsewhere: on a CPU blocks in cache were as fast as compiled ones when
    measured (`tests/benchmarks`). Where compilation fails, compiled or eager take over with a warning. Raises ValueError
    for another name, and for `triton` where nothing can run it.
    """
    if kernel not in KERNELS:
        raise ValueError(f"kernel is auto, eager, compiled or triton, got {kernel!r}")
    if kernel == "auto":
        kernel = "triton" if device.type == "cuda" and has_triton() else "eager"
    if kernel == "triton" and not (has_triton() and (device.type == "cuda" or os.environ.get("TRITON_INTERPRET"))):
        missing = "needs the package triton, which is not installed"
        raise ValueError(f"kernel triton {f'runs on a GPU, got {device.type}' if has_triton() else missing}: use auto")
    return {"eager": eager_pass, "compiled": compiled_pass, "triton": triton_pass}[kernel]


def as_asked(rows: Callable[..., RowResult]) -> RowPass:
    """A row pass that gives its gradient in one dtype, with a cast at its end."""

    def run(
        product_NV: Tensor, teacher_product_NV: Tensor | None, labels_N: Tensor, terms: Sequence[TokenTerm],
        coefficients: Sequence[float], shape: LogitShape, teacher_shape: LogitShape, normalizers: bool = False,
        compared: int | None = None, row_values: dict[str, Tensor] | None = None,
        gradient_dtype: torch.dtype | None = None, out_NV: Tensor | None = None,
    ) -> RowResult:  # fmt: skip
        result = rows(
            product_NV, teacher_product_NV, labels_N, terms, coefficients, shape, teacher_shape, normalizers, compared,
            row_values,
        )  # fmt: skip
        gradient_NV = result.gradient_NV
        if gradient_NV is None:
            return result
        if out_NV is not None:
            return result._replace(gradient_NV=out_NV.copy_(gradient_NV))
        return result if gradient_dtype is None else result._replace(gradient_NV=gradient_NV.to(gradient_dtype))

    return run


eager_pass = as_asked(row_losses_and_gradient)
compiled_pass = as_asked(CompiledRows())  # one in a process, so that what it compiled is kept


def triton_pass(
    product_NV: Tensor, teacher_product_NV: Tensor | None, labels_N: Tensor, terms: Sequence[TokenTerm],
    coefficients: Sequence[float], shape: LogitShape, teacher_shape: LogitShape, normalizers: bool = False,
    compared: int | None = None, row_values: dict[str, Tensor] | None = None,
    gradient_dtype: torch.dtype | None = None, out_NV: Tensor | None = None,
) -> RowResult:  # fmt: skip
    formulas = formulas_of(terms, row_values or ())
    if formulas is not None and not triton_failures:
        from gakd.losses.row_op import fits, triton_rows  # where Triton is installed

        if fits(product_NV, teacher_product_NV, compared):
            try:
                return triton_rows(
                    product_NV, teacher_product_NV, labels_N, terms, coefficients, shape, teacher_shape, normalizers,
                    compared, row_values, formulas, gradient_dtype, out_NV,
                )  # fmt: skip
            except (torch.OutOfMemoryError, ValueError):  # a term that lacks a row value says so
                raise
            except Exception as error:  # no C compiler, a driver that is too old: any of a dozen types
                reason = str(error).strip().splitlines()[0]
                triton_failures.append(reason)
                warnings.warn(f"the Triton kernel failed, torch.compile takes over: {reason}", stacklevel=2)
    return compiled_pass(
        product_NV, teacher_product_NV, labels_N, terms, coefficients, shape, teacher_shape, normalizers, compared,
        row_values, gradient_dtype, out_NV,
    )  # fmt: skip
