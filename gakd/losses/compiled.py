"""The row pass compiled by torch: for terms that the Triton kernel has no formula of.

One graph for a list of terms. Compiled once each: rows are dynamic from the start, and coefficients, factors and temperatures
come as tensors, so that neither a shorter last chunk nor a schedule nor a sweep compiles anew.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from gakd.losses.kernel import RowResult, row_losses_and_gradient
from gakd.losses.term import TokenChunk, TokenTerm
from gakd.types import LogitShape

PLAIN = LogitShape()


class AtOne:
    """A term as it sees chunks: at a temperature that somebody else has applied, with a factor that somebody else has."""

    temperature = 1.0
    scale = 1.0

    def __init__(self, term: TokenTerm) -> None:
        self.term = term
        self.name, self.needs_teacher = term.name, term.needs_teacher
        self.needs_shared_vocabulary = term.needs_shared_vocabulary

    def chunk_losses(self, chunk: TokenChunk) -> Tensor:
        return self.term.chunk_losses(chunk)

    def accumulate_(
        self, chunk: TokenChunk, coefficient: float | Tensor, total_NV: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return self.term.accumulate_(chunk, coefficient, total_NV)


def rows_by_temperature(
    product_NV: Tensor, teacher_product_NV: Tensor | None, labels_N: Tensor, groups: Sequence[Sequence[AtOne]],
    factors: Sequence[Sequence[Tensor]], temperatures: Sequence[Tensor], shape: LogitShape, teacher_shape: LogitShape,
    normalizers: bool, compared: int | None, row_values: dict[str, Tensor] | None,
) -> tuple[list[list[Tensor]], Tensor | None, list[Tensor]]:  # fmt: skip
    """`row_losses_and_gradient` of groups of terms, each at a temperature; normalizers are those of the last, at 1."""
    logits_NV = shape.logits(product_NV)
    teacher_logits_NV = None if teacher_product_NV is None else teacher_shape.logits(teacher_product_NV)
    losses: list[list[Tensor]] = []
    total_NV: Tensor | None = None
    log_normalizers: list[Tensor] = []
    for index, (group, own_factors, temperature) in enumerate(zip(groups, factors, temperatures, strict=True)):
        at_NV = logits_NV / temperature
        teacher_at_NV = None if teacher_logits_NV is None else teacher_logits_NV / temperature
        wanted = normalizers and index == len(groups) - 1
        result = row_losses_and_gradient(
            at_NV, teacher_at_NV, labels_N, group, own_factors, PLAIN, PLAIN, wanted, compared, row_values
        )
        losses.append(result.losses)
        log_normalizers = result.log_normalizers
        if result.gradient_NV is not None:
            missing = logits_NV.shape[1] - result.gradient_NV.shape[1]
            own_NV = pad(result.gradient_NV, (0, missing)) if missing else result.gradient_NV
            total_NV = own_NV if total_NV is None else total_NV + own_NV
    return losses, None if total_NV is None else shape.through_(total_NV, logits_NV), log_normalizers


class CompiledRows:
    """`row_losses_and_gradient` by `torch.compile`; where that fails, the eager one takes over with a warning, said once."""

    def __init__(self) -> None:
        self._compiled: Any = None
        self._broken = False

    def __call__(
        self, product_NV: Tensor, teacher_product_NV: Tensor | None, labels_N: Tensor, terms: Sequence[TokenTerm],
        coefficients: Sequence[float], shape: LogitShape, teacher_shape: LogitShape, normalizers: bool = False,
        compared: int | None = None, row_values: dict[str, Tensor] | None = None,
    ) -> RowResult:  # fmt: skip
        # A single row would be compiled for itself: to a compiler 1 is no number of rows like others.
        if terms and len(labels_N) > 1 and not self._broken:
            try:
                return self._run(
                    product_NV, teacher_product_NV, labels_N, terms, coefficients, shape, teacher_shape, normalizers,
                    compared, row_values,
                )  # fmt: skip
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # a missing compiler shows up as any of a dozen types
                self._broken = True
                reason = str(error).strip().splitlines()[0]
                warnings.warn(f"torch.compile failed, the eager kernel takes over: {reason}", stacklevel=2)
        return row_losses_and_gradient(
            product_NV, teacher_product_NV, labels_N, terms, coefficients, shape, teacher_shape, normalizers, compared,
            row_values,
        )  # fmt: skip

    def _run(
        self, product_NV: Tensor, teacher_product_NV: Tensor | None, labels_N: Tensor, terms: Sequence[TokenTerm],
        coefficients: Sequence[float], shape: LogitShape, teacher_shape: LogitShape, normalizers: bool,
        compared: int | None, row_values: dict[str, Tensor] | None,
    ) -> RowResult:  # fmt: skip
        self._compiled = self._compiled or torch.compile(rows_by_temperature)
        temperatures = list(dict.fromkeys(term.temperature for term in terms))
        if normalizers:  # of logits as they are, which come last
            temperatures = [one for one in temperatures if one != 1.0] + [1.0]
        indices = [[i for i, term in enumerate(terms) if term.temperature == one] for one in temperatures]

        def tensor(value: float) -> Tensor:  # filled on the device: nothing is copied there
            return labels_N.new_full((), value, dtype=torch.float64)

        factors = [[tensor(coefficients[i] * terms[i].scale / terms[i].temperature) for i in own] for own in indices]
        of_rows = [product_NV, teacher_product_NV, labels_N, *(row_values or {}).values()]
        for values in of_rows:
            if values is not None:
                torch._dynamo.maybe_mark_dynamic(values, 0)
        losses, gradient_NV, log_normalizers = self._compiled(
            product_NV, teacher_product_NV, labels_N, [[AtOne(terms[i]) for i in own] for own in indices], factors,
            [tensor(one) for one in temperatures], shape, teacher_shape, normalizers, compared, row_values,
        )  # fmt: skip
        by_index = {
            i: losses_N * terms[i].scale if terms[i].scale != 1.0 else losses_N
            for own, group in zip(indices, losses, strict=True)
            for i, losses_N in zip(own, group, strict=True)
        }
        return RowResult([by_index[i] for i in range(len(terms))], gradient_NV, log_normalizers)
