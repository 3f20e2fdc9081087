"""Row passes for the Triton kernel and its oracle. `python -m tests.losses.row_kernel_cases OUT CASE...` runs the kernel.

On a CPU, by Triton's interpreter: TRITON_INTERPRET=1 must be set before anything imports triton, hence a process of its own.
"""

from __future__ import annotations

import math
import sys
from typing import Any, NamedTuple

import torch

from gakd import (
    AlphaBeta,
    CrossEntropy,
    ForwardKL,
    JensenShannon,
    KLToReference,
    PolicyGradient,
    ReverseKL,
    SkewForwardKL,
    SkewReverseKL,
    TotalVariation,
)
from gakd.losses.term import TokenTerm
from gakd.types import LogitShape

ROWS, VOCAB, BLOCK = 4, 41, 16  # three blocks, the last of nine tokens
PLAIN = LogitShape()


class Case(NamedTuple):
    terms: list[TokenTerm]
    shape: LogitShape = PLAIN
    teacher_shape: LogitShape = PLAIN
    compared: int | None = None
    teacher: str = "other"  # or "same" as the student's, or "none"
    normalizers: bool = False
    row_values: tuple[str, ...] = ()
    gradient_dtype: torch.dtype | None = None
    teacher_dtype: torch.dtype = torch.float32
    banned: tuple[str, ...] = ()  # "student", "teacher": of which some tokens have logits of -inf, a whole block too
    in_place: bool = False
    offset: float = 0.0  # of all logits


DIVERGENCES = [
    ForwardKL(), ReverseKL(), JensenShannon(0.3), SkewForwardKL(0.1), SkewReverseKL(0.2),
    SkewReverseKL(0.2, detach_mixture=True), TotalVariation(), AlphaBeta(0.3, 0.6), AlphaBeta(0.5, 0.5), AlphaBeta(0, 0.7),
    AlphaBeta(0.7, 0), AlphaBeta(1.5, -0.5), AlphaBeta(0.6, -0.6), AlphaBeta(0, 0), JensenShannon(0.0), JensenShannon(1.0),
    SkewForwardKL(0.0), SkewReverseKL(0.0),
]  # fmt: skip
CAPPED = {"shape": LogitShape(1.3, 4.0), "teacher_shape": LogitShape(0.7, 3.0)}
MOST = [CrossEntropy(), ForwardKL(), ReverseKL(), JensenShannon(0.3), SkewReverseKL(0.2)]
SAMPLED_VALUES = ("advantages", "old_log_probs", "importance_weights", "reference_log_probs")
ALONE = {f"alone {i} {term.name}": Case([term]) for i, term in enumerate(DIVERGENCES)}
EQUAL = {f"equal {i} {term.name}": Case([term], teacher="same") for i, term in enumerate(DIVERGENCES)}
# Of what is excluded by one model alone, the divergences whose answer is finite.
FINITE = {
    "student": [ReverseKL(), JensenShannon(0.3), SkewForwardKL(0.1), SkewReverseKL(0.2), TotalVariation()],
    "teacher": [ForwardKL(), JensenShannon(0.3), SkewForwardKL(0.1), SkewReverseKL(0.2), TotalVariation()],
}
MIXED = {
    "cross entropy": Case([CrossEntropy()], teacher="none"),
    "cross entropy, normalizers": Case([CrossEntropy()], teacher="none", normalizers=True),
    "normalizers alone": Case([], normalizers=True),
    "two reads": Case([CrossEntropy(), ReverseKL()], normalizers=True),
    "three reads": Case(MOST, normalizers=True),
    "one temperature": Case([CrossEntropy(1.5), ReverseKL(1.5), JensenShannon(0.3, 1.5)], normalizers=True),
    "two temperatures": Case([ReverseKL(2.0), CrossEntropy(), ForwardKL(2.0, temperature_squared=False)]),
    "four temperatures": Case([CrossEntropy(), ReverseKL(2.0), ForwardKL(3.0), TotalVariation(0.7)], normalizers=True),
    "four temperatures in place": Case([CrossEntropy(), ReverseKL(2.0), ForwardKL(3.0)], in_place=True),
    "capped": Case(MOST, **CAPPED, normalizers=True),
    "capped, two temperatures": Case([CrossEntropy(), ReverseKL(2.0), JensenShannon(0.4, 2.0)], **CAPPED),
    "a narrower teacher": Case(MOST, compared=32, normalizers=True),
    "a teacher narrower than a block": Case([CrossEntropy(), ReverseKL()], compared=11, **CAPPED),
    "large logits": Case([CrossEntropy(), ForwardKL(), ReverseKL()], offset=700.0),
    "bf16 gradient": Case(MOST, gradient_dtype=torch.bfloat16),
    "bf16 teacher": Case(MOST, teacher_dtype=torch.bfloat16),
    "in place": Case(MOST, in_place=True),
    "policy gradient": Case(
        [CrossEntropy(), PolicyGradient(), KLToReference()], teacher="none", row_values=SAMPLED_VALUES
    ),
    "policy gradient beside a teacher": Case(
        [PolicyGradient(None, 1.5), JensenShannon(0.3), ReverseKL()], row_values=SAMPLED_VALUES, normalizers=True
    ),
    "an alpha of each row": Case([SkewForwardKL(0.0), SkewReverseKL(0.3), ForwardKL()], row_values=("skew_alpha",)),
    "both banned": Case([CrossEntropy(), *DIVERGENCES[:9]], banned=("student", "teacher"), normalizers=True),
    **{f"{one} banned": Case(terms, banned=(one,)) for one, terms in FINITE.items()},
    "student banned, infinite": Case([CrossEntropy(), ForwardKL()], banned=("student",)),
    "teacher banned, infinite": Case([ReverseKL()], banned=("teacher",)),
    "equal, cooled and capped": Case(
        [ReverseKL(1.7), JensenShannon(0.3, 1.7)], LogitShape(1.3, 4.0), LogitShape(1.3, 4.0), teacher="same"
    ),
}
CASES = {**ALONE, **EQUAL, **MIXED}


def coefficients(case: Case) -> list[float]:
    return [0.4 + 0.3 * i for i in range(len(case.terms))]


def inputs(case: Case, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Arguments of a row pass by name; the numbers are those of fp32, whatever the dtype."""
    draw = torch.Generator().manual_seed(1)
    width = VOCAB if case.compared is None else case.compared
    product_NV = 3 * torch.randn(ROWS, VOCAB, generator=draw) + case.offset
    teacher_NU = (3 * torch.randn(ROWS, VOCAB, generator=draw) + case.offset)[:, :width].contiguous()
    labels_N = torch.tensor([0, 15, 16, VOCAB - 1])  # at the edges of blocks
    if case.teacher == "same":
        teacher_NU = product_NV.clone()
    banned = torch.tensor([*range(16), 20, 33])
    if "student" in case.banned:
        product_NV[1:3, banned] = -math.inf
    if "teacher" in case.banned:
        teacher_NU[1:3, banned] = -math.inf
    values = {name: torch.rand(ROWS, generator=draw) + 0.05 for name in case.row_values}
    values = {name: -3 * value if name.endswith("log_probs") else value * 0.9 for name, value in values.items()}
    return {
        "product_NV": product_NV.to(dtype),
        "teacher_product_NU": None if case.teacher == "none" else teacher_NU.to(case.teacher_dtype).to(dtype),
        "labels_N": labels_N,
        "terms": case.terms,
        "coefficients": coefficients(case),
        "shape": case.shape,
        "teacher_shape": case.teacher_shape,
        "normalizers": case.normalizers,
        "compared": case.compared,
        "row_values": {name: value.to(dtype) for name, value in values.items()},
    }


def kernel_result(case: Case) -> Any:
    from gakd.losses import row_op
    from gakd.losses.formula import formulas_of

    row_op.BLOCK = BLOCK
    arguments = inputs(case)
    if case.teacher_dtype != torch.float32:
        arguments["teacher_product_NU"] = arguments["teacher_product_NU"].to(case.teacher_dtype)
    formulas = formulas_of(case.terms, case.row_values)
    assert formulas is not None
    out = arguments["product_NV"] if case.in_place else None
    return tuple(row_op.triton_rows(**arguments, formulas=formulas, gradient_dtype=case.gradient_dtype, out_NV=out))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torch.no_grad():
        torch.save({name: kernel_result(CASES[name]) for name in sys.argv[2:]}, sys.argv[1])
