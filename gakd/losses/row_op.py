"""The row pass of terms that have a formula, by the Triton kernel: `gakd::row_pass`, and what it is given and gives.

Terms of the label are at one temperature of a launch and terms that compare at one, their own; the temperatures of a pass
beyond that take further launches, which add to the gradient. One launch is the rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from gakd.losses.formula import OF_LABELS, RowFormula
from gakd.losses.functional import honest
from gakd.losses.kernel import RowResult
from gakd.losses.row_kernel import BLOCK, SUMS, WARPS, row_pass_kernel
from gakd.losses.term import TokenChunk, TokenTerm
from gakd.types import LogitShape


@torch.library.custom_op("gakd::row_pass", mutates_args=("gradient_NV",))
def row_pass_op(
    product_NV: Tensor, teacher_product_NU: Tensor | None, labels_N: Tensor, gradient_NV: Tensor | None,
    given_NS: Tensor | None, weights_N: Tensor | None, alphas_N: Tensor | None, kinds: str, numbers: Sequence[float],
    of_rows: Sequence[bool], shape: Sequence[float], teacher_shape: Sequence[float], compared: int,
    own_temperature: float, temperature: float, label_factor: float, add: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Sums of each row `[N, S]` (`row_kernel.SUMS`), and losses `[N, K]`: of each kind, then of cross entropy.

    Writes or adds the gradient, where there is a tensor for it. `kinds` are names between spaces, `numbers` three of each
    (factor, a, b), shapes (scale, softcap), 0 for no softcap; a temperature of 0 is a side that nobody asks for.
    """
    names = tuple(kinds.split())
    sums_NS, losses_NK = _outputs(product_NV, given_NS, kinds)
    shared, own = temperature > 0, own_temperature > 0
    teacher = shared and teacher_product_NU is not None
    vocab_size = product_NV.shape[1]
    same = own and shared and own_temperature == temperature and compared == vocab_size
    more = not set(names) <= {"forward_kl", "reverse_kl"}
    launch: Any = row_pass_kernel[(len(product_NV),)]
    launch(
        product_NV, product_NV.stride(0), teacher_product_NU if teacher else None,
        teacher_product_NU.stride(0) if teacher and teacher_product_NU is not None else 0,
        labels_N, product_NV if gradient_NV is None else gradient_NV,
        0 if gradient_NV is None else gradient_NV.stride(0),
        sums_NS if given_NS is None else given_NS, losses_NK, weights_N, alphas_N,
        vocab_size, compared, shape[0], shape[1], teacher_shape[0], teacher_shape[1],
        1 / own_temperature if own else 1.0, 1 / temperature if shared else 1.0, label_factor, tuple(numbers),
        KINDS=names, OF_ROWS=tuple(of_rows), SLOTS=losses_NK.shape[1], OWN=own, SHARED=shared, SAME=same,
        TEACHER=teacher, SOFTCAP=shape[1] > 0, TEACHER_SOFTCAP=teacher_shape[1] > 0, SUM=given_NS is None,
        SUM_MORE=more, GRADIENT=gradient_NV is not None, WEIGHTS=weights_N is not None, ADD=add, BLOCK=BLOCK,
        num_warps=WARPS, enable_fp_fusion=False,  # both models' logits rounded alike: exactly 0 where they are equal
    )  # fmt: skip
    return sums_NS, losses_NK


@row_pass_op.register_fake
def _(product_NV: Tensor, teacher_product_NU: Any, labels_N: Any, gradient_NV: Any, given_NS: Tensor | None,
      weights_N: Any, alphas_N: Any, kinds: str, *_: Any) -> tuple[Tensor, Tensor]:  # fmt: skip
    return _outputs(product_NV, given_NS, kinds)


def _outputs(product_NV: Tensor, given_NS: Tensor | None, kinds: str) -> tuple[Tensor, Tensor]:
    slots = 1
    while slots < len(kinds.split()) + 1:  # a power of two, as Triton's ranges are
        slots *= 2
    sums_NS = product_NV.new_empty(len(product_NV) if given_NS is None else 0, len(SUMS), dtype=torch.float32)
    return sums_NS, product_NV.new_empty(len(product_NV), slots, dtype=torch.float32)


def fits(product_NV: Tensor, teacher_product_NU: Tensor | None, compared: int | None) -> bool:
    """Whether the kernel takes such logits: of at most 32 bits, and a teacher's of the tokens that are compared."""
    products = [product_NV] if teacher_product_NU is None else [product_NV, teacher_product_NU]
    width = product_NV.shape[1] if compared is None else compared
    plain = all(one.element_size() <= 4 and one.stride(1) == 1 for one in products)
    return plain and (teacher_product_NU is None or teacher_product_NU.shape[1] == width)


def triton_rows(
    product_NV: Tensor, teacher_product_NU: Tensor | None, labels_N: Tensor, terms: Sequence[TokenTerm],
    coefficients: Sequence[float], shape: LogitShape, teacher_shape: LogitShape, normalizers: bool, compared: int | None,
    row_values: dict[str, Tensor] | None, formulas: Sequence[RowFormula], gradient_dtype: torch.dtype | None = None,
    out_NV: Tensor | None = None,
) -> RowResult:  # fmt: skip
    """`kernel.row_losses_and_gradient` of terms whose formulas these are; the gradient as `row_pass` says."""
    width = product_NV.shape[1] if compared is None else compared
    labelled = _by_temperature(terms, [i for i, one in enumerate(formulas) if one.kind in OF_LABELS])
    comparing = _by_temperature(terms, [i for i, one in enumerate(formulas) if one.kind not in OF_LABELS])
    if normalizers:
        comparing.setdefault(1.0, [])
    launches = list(zip_longest(labelled.items(), comparing.items(), fillvalue=(0.0, [])))
    gradient_NV, target_NV = _buffers(product_NV, launches, gradient_dtype, out_NV)
    losses: dict[int, Tensor] = {}
    log_normalizers: list[Tensor] = []
    written = False
    for (own_temperature, own), (temperature, others) in launches:
        factors = {i: coefficients[i] * terms[i].scale / terms[i].temperature for i in [*own, *others]}
        kinds = " ".join(formulas[i].kind for i in others)
        numbers = [value for i in others for value in (factors[i], formulas[i].a, formulas[i].b)]
        of_rows = [formulas[i].row_value is not None for i in others]
        plain = [i for i in own if formulas[i].kind == "cross_entropy"]
        sampled = [i for i in own if formulas[i].kind == "sampled"]
        shapes = (shape.scale, shape.softcap or 0.0), (teacher_shape.scale, teacher_shape.softcap or 0.0)
        rest = (
            _alphas(formulas, others, row_values), kinds, numbers, of_rows, *shapes, width, own_temperature, temperature,
            -sum(factors[i] for i in plain), written,
        )  # fmt: skip
        inputs = product_NV, teacher_product_NU, labels_N
        writes_NV = gradient_NV if own or others else None
        given_NS = weights_N = None
        if sampled:  # their losses are asked for between the reads of one kernel, and so are two launches
            given_NS, _ = row_pass_op(*inputs, None, None, None, *rest)
            own_losses, weights_N = _of_labels(terms, sampled, factors, given_NS[:, 7], labels_N, row_values)
            losses.update(own_losses)
        sums_NS, losses_NK = row_pass_op(*inputs, writes_NV, given_NS, weights_N, *rest)
        written = written or writes_NV is not None
        for column, i in [*enumerate(others), *((len(others), i) for i in plain)]:
            losses[i] = losses_NK[:, column] if terms[i].scale == 1.0 else losses_NK[:, column] * terms[i].scale
        if normalizers and temperature == 1.0:
            sums_NS = sums_NS if given_NS is None else given_NS
            log_normalizers = [sums_NS[:, 8]] if teacher_product_NU is None else [sums_NS[:, 8], sums_NS[:, 9]]
    if target_NV is not None and gradient_NV is not target_NV:
        target_NV.copy_(gradient_NV)
    return RowResult([losses[i] for i in range(len(terms))], target_NV, log_normalizers)


def _by_temperature(terms: Sequence[TokenTerm], indices: list[int]) -> dict[float, list[int]]:
    groups: dict[float, list[int]] = {}
    for index in indices:
        groups.setdefault(terms[index].temperature, []).append(index)
    return groups


def _buffers(
    product_NV: Tensor, launches: Sequence[Any], gradient_dtype: torch.dtype | None, out_NV: Tensor | None
) -> tuple[Any, Tensor | None]:
    """Where launches write, and where the gradient ends: one tensor, unless several launches would round or read it."""
    writing = sum(bool(own or others) for (_, own), (_, others) in launches)
    if writing == 0:
        return None, None
    target_NV = out_NV
    if target_NV is None:
        target_NV = torch.empty_like(product_NV, dtype=gradient_dtype or torch.float32)
    if writing == 1 or (target_NV.dtype == torch.float32 and target_NV.data_ptr() != product_NV.data_ptr()):
        return target_NV, target_NV
    return torch.empty_like(product_NV, dtype=torch.float32), target_NV


def _alphas(formulas: Sequence[RowFormula], others: list[int], row_values: dict[str, Tensor] | None) -> Tensor | None:
    names = [formulas[i].row_value for i in others if formulas[i].row_value is not None]
    return (row_values or {})[names[0]] if names and names[0] is not None else None


def _of_labels(
    terms: Sequence[Any], sampled: list[int], factors: dict[int, float], log_probs_N: Tensor, labels_N: Tensor,
    row_values: dict[str, Tensor] | None,
) -> tuple[dict[int, Tensor], Tensor]:  # fmt: skip
    """Losses of the terms that know the label's log-probability alone, and `sum_k factor_k d(loss_k)/d(log-probability)`."""
    chunk = TokenChunk(log_probs_N.new_empty(len(labels_N), 0), None, labels_N, row_values=row_values)
    losses, weights_N = {}, torch.zeros_like(log_probs_N, memory_format=torch.contiguous_format)
    with torch.enable_grad():
        leaf_N = log_probs_N.detach().requires_grad_()
        for i in sampled:
            losses_N = terms[i].of_labels(chunk, leaf_N)
            (gradient_N,) = torch.autograd.grad(losses_N.sum(), leaf_N)
            weights_N += gradient_N * factors[i]
            losses_N = honest(losses_N.detach())
            losses[i] = losses_N * terms[i].scale if terms[i].scale != 1.0 else losses_N
    return losses, weights_N
