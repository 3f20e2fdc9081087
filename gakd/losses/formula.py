"""How a term says that the Triton kernel knows its formula, and which terms of a pass do."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal, NamedTuple

from gakd.losses.term import TokenTerm

Kind = Literal[
    "cross_entropy", "sampled", "forward_kl", "reverse_kl", "jensen_shannon", "skew_forward_kl", "skew_reverse_kl",
    "skew_reverse_kl_detached", "total_variation", "alpha_beta", "alpha_beta_of_sum_zero",
]  # fmt: skip
OF_LABELS = ("cross_entropy", "sampled")  # their gradient is a row's own number times `onehot(label) - q`
# The methods that a formula stands for. `TokenLoss` and its subclasses say more of each.
MATHS = ("losses", "losses_and_gradient", "chunk_losses", "accumulate_", "of_labels")


class RowFormula(NamedTuple):
    """A closed form of `row_formulas.py` and its numbers, named there; `sampled` is any loss of the label's log-probability."""

    kind: Kind
    a: float = 0.0
    b: float = 0.0
    row_value: str | None = None  # of each row, in the place of `a` where the batch has it


def formulas_of(terms: Sequence[TokenTerm], row_values: Collection[str] = ()) -> list[RowFormula] | None:
    """The formula of each term, with `row_value` only where the batch has it; None where any term has none."""
    found = [_formula_of(term, row_values) for term in terms]
    formulas = [formula for formula in found if formula is not None]
    of_rows = {formula.row_value for formula in formulas} - {None}
    return formulas if len(formulas) == len(found) and len(of_rows) < 2 else None


def _formula_of(term: TokenTerm, row_values: Collection[str]) -> RowFormula | None:
    if not _speaks_for_itself(term):
        return None
    formula: RowFormula = term.row_formula()  # type: ignore[attr-defined]
    if formula.row_value in row_values:
        return formula
    if formula.kind.startswith("skew") and formula.a == 0:
        formula = RowFormula("forward_kl" if formula.kind == "skew_forward_kl" else "reverse_kl")
    return formula._replace(row_value=None)


def _speaks_for_itself(term: TokenTerm) -> bool:
    """Whether `row_formula` is of the class that wrote the term's maths, or of one below: a subclass may have other maths."""
    classes = type(term).__mro__
    owner = {name: next((i for i, one in enumerate(classes) if name in vars(one)), None) for name in MATHS}
    speaker = next((i for i, one in enumerate(classes) if "row_formula" in vars(one)), None)
    if speaker is None or not set(MATHS).isdisjoint(getattr(term, "__dict__", ())):
        return False
    return all(index is None or index >= speaker for index in owner.values())
