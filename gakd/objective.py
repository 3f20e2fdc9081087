"""The objective: a weighted sum of terms, the schedules of its weights, and the only division in the project.

Terms return unreduced losses, per token or per sequence. `Objective.coefficients` turns each weight into the factor that
multiplies those losses: the weight over the number of tokens (or sequences) of the whole optimizer step, over all its
micro-batches and all ranks. So neither the micro-batch size, nor accumulation, nor the world size changes a gradient.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, Self, cast

from torch import Tensor

from gakd.errors import kind_of
from gakd.types import Batch
from gakd.weights import Balanced, Weight, check_weight, multiplied, weight_at, weight_text

EXAMPLE = "0.5 * CrossEntropy() + 0.5 * ReverseKL()"


class Counts(NamedTuple):
    """What one optimizer step holds, over all its micro-batches and all ranks."""

    tokens: int  # supervised tokens
    sequences: int  # sequences with at least one supervised token
    world_size: int = 1

    def of(self, unit: Literal["token", "sequence"]) -> int:
        return self.tokens if unit == "token" else self.sequences

    @classmethod
    def over(cls, *batches: Batch) -> Counts:
        """Of a step of these micro-batches in one process; `run.counts` sums over all. TypeError for anything but batches."""
        for batch in batches:
            if not isinstance(batch, Batch):
                raise TypeError(f"counts are of batches, Counts.over(*micro_batches), got {type(batch).__name__}")
        lengths = [length for batch in batches for length in batch.lengths]
        return cls(sum(lengths), sum(length > 0 for length in lengths))


class Coefficients(NamedTuple):
    """The factors of one optimizer step.

    `terms[name]` multiplies the losses of a term in the student's scalar. Data-parallel backends average gradients over
    ranks, so it carries the world size. `per_sequence` is the plain mean, for the discriminator, whose gradients are
    summed over ranks. `step_rows` is about how many supervised rows a rank sees in the step: what is formed once a step
    has to pay off over them. `step` is what a term's own schedules go by.
    """

    terms: dict[str, float]
    per_sequence: float
    step_rows: float
    step: int = 0

    def only(self, *names: str) -> Coefficients:
        """The other terms switched off: for a batch that not all of an objective speaks about.

        ValueError for a name that is no term's.
        """
        if unknown := set(names) - self.terms.keys():
            raise ValueError(f"no term is named {sorted(unknown)[0]}: the objective has {sorted(self.terms)}")
        return self._replace(terms={name: value * (name in names) for name, value in self.terms.items()})


class Term:
    """One summand of an objective: `2 * term`, `schedule * term`, `term / 2`, `-term`, `term + term`, `sum` build an `Objective`.

    A term alone is an objective too, of weight 1.
    """

    name: str
    unit: Literal["token", "sequence"] = "token"

    def at(self, step: int) -> Self:
        """The term as it is at an optimizer step; itself, where nothing of it is a schedule."""
        return self

    def __str__(self) -> str:
        """What it is and what was set: `jensen_shannon(beta=0.5)`. Flags and temperatures only where they are not the default."""
        own = getattr(self, "name", type(self).__name__)
        kind, shown = getattr(type(self), "name", own), []
        for name, parameter in inspect.signature(type(self).__init__).parameters.items():
            value = getattr(self, name, inspect.Parameter.empty)
            quiet = name.startswith("temperature") or isinstance(value, bool)
            if isinstance(value, (bool, int, float)) and not (quiet and value == parameter.default):
                shown.append(f"{name}={value if isinstance(value, bool) else format(value, 'g')}")
            elif name == "temperature" and callable(value):
                shown.append(f"{name}={weight_text(cast('Weight', value))}")
        if own != kind:
            shown.append(f"name={own}")
        return f"{kind}({', '.join(shown)})" if shown else own

    def __repr__(self) -> str:
        return str(self)

    def coefficients(self, step: int, counts: Counts) -> Coefficients:
        return as_objective(self).coefficients(step, counts)

    def __mul__(self, weight: Weight) -> Objective:
        return Objective(((_weight(weight, getattr(self, "name", type(self).__name__)), self),))

    def __add__(self, other: Term | Objective) -> Objective:
        return as_objective(self) + other

    def __radd__(self, zero: Literal[0]) -> Objective:
        return zero + as_objective(self)

    def __sub__(self, other: Term | Objective) -> Objective:
        return as_objective(self) - other

    def __truediv__(self, number: float) -> Objective:
        return as_objective(self) / number

    def __neg__(self) -> Objective:
        return -1 * self

    __rmul__ = __mul__


class Objective:
    """`sum_k weight_k(step) * mean(losses_k)`, means over the tokens or sequences of the whole optimizer step.

    `terms` are pairs of weight and term, as `weight * term + ...` makes them. TypeError for anything else; ValueError for a
    term without a name, of another unit than a token or a sequence, or of another's name.
    """

    def __init__(self, terms: tuple[tuple[Weight, Term], ...]) -> None:
        if not isinstance(terms, tuple | list):
            raise TypeError(f"an objective is a sum of weighted terms, such as {EXAMPLE}; got {kind_of(terms)}")
        for entry in terms:
            if not (isinstance(entry, tuple) and len(entry) == 2):
                raise TypeError(
                    f"an objective is a sum of weighted terms, such as {EXAMPLE}; got {kind_of(entry)} among them"
                )
            _check_term(entry[1])
        names = [term.name for _, term in terms]
        if repeated := {name for name in names if names.count(name) > 1}:
            one = next(term for _, term in terms if term.name in repeated)
            raise ValueError(
                f"two terms share the name {one.name}, by which logs tell them apart: give one its own, "
                f'{type(one).__name__}(name="...")'
            )
        self.terms = tuple(terms)

    def __iter__(self) -> Iterator[Term]:
        return (term for _, term in self.terms)

    def __str__(self) -> str:
        return " + ".join(f"{weight_text(weight)} * {term}" for weight, term in self.terms)

    def __repr__(self) -> str:
        return str(self)

    def __add__(self, other: Term | Objective) -> Objective:
        if isinstance(other, Objective | Term | type):
            return Objective(self.terms + as_objective(other).terms)
        return NotImplemented

    def __radd__(self, zero: Literal[0]) -> Objective:
        return self if type(zero) is int and zero == 0 else NotImplemented  # what `sum` begins with

    def __sub__(self, other: Term | Objective) -> Objective:
        return self + -other if isinstance(other, Objective | Term) else NotImplemented

    def __mul__(self, weight: Weight) -> Objective:
        factor = _weight(weight, "an objective")
        return Objective(tuple((multiplied(own, factor), term) for own, term in self.terms))

    def __truediv__(self, number: float) -> Objective:
        if isinstance(number, int | float) and number == 0:
            raise ValueError(f"an objective is divided by a number other than 0: ({self}) / 0")
        return self * (1 / number) if isinstance(number, int | float) else NotImplemented

    def __neg__(self) -> Objective:
        return -1 * self

    __rmul__ = __mul__

    def coefficients(self, step: int, counts: Counts) -> Coefficients:
        """The factors of the terms at `step`; ValueError where the step supervises nothing, or a weight is no finite number."""
        if not isinstance(counts, Counts):
            raise TypeError(
                f"a step is divided by its counts, Counts.over(*micro_batches), got {type(counts).__name__}"
            )
        if counts.tokens < 1 or counts.sequences < 1:
            raise ValueError(f"an optimizer step needs supervised tokens, got {counts}: check labels and max_length")
        factors = {
            term.name: weight_at(weight, step, f"the weight of {term.name}") * counts.world_size / counts.of(term.unit)
            for weight, term in self.terms
        }
        return Coefficients(factors, 1 / counts.sequences, counts.tokens / counts.world_size, step)

    def means(self, sums: dict[str, float], counts: Counts) -> dict[str, float]:
        """Summed losses -> the means that are logged; a name that is not a term's is a statistic per sequence."""
        per_token = {term.name for term in self if term.unit == "token"}
        return {name: total / counts.of("token" if name in per_token else "sequence") for name, total in sums.items()}

    def finish_step(self, over_ranks: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Let balanced weights take in what the step measured, after its last backward, on every rank; returns what they were."""
        used: dict[str, float] = {}
        for weight, term in self.terms:
            if isinstance(weight, Balanced):
                used[f"{term.name}_weight"] = weight.finish_step(over_ranks)
        return used


def as_objective(given: Objective | Term | Sequence[Objective | Term]) -> Objective:
    """An objective, a term of weight 1, or the sum of some of them. TypeError for anything else."""
    if isinstance(given, Objective):
        return given
    if isinstance(given, list | tuple):
        return sum((as_objective(one) for one in given), Objective(()))
    if isinstance(given, Term):
        return Objective(((1.0, given),))
    raise TypeError(f"an objective is a sum of weighted terms, such as {EXAMPLE}; got {kind_of(given)}")


def _weight(weight: object, whose: str) -> Weight:
    if isinstance(weight, Term | Objective):
        raise TypeError(
            f"terms add up and have weights, they do not multiply: got {type(weight).__name__} times {whose}"
        )
    return check_weight(weight, whose)


def _check_term(term: object) -> None:
    if not isinstance(term, Term):
        raise TypeError(f"an objective is a sum of weighted terms, such as {EXAMPLE}; got {kind_of(term)} among them")
    kind, name = type(term).__name__, getattr(term, "name", None)
    if not (isinstance(name, str) and name):
        got = "has no name" if name is None else f"has the name {name!r}"
        raise ValueError(f'{kind} {got}, by which logs know a term: write name = "{snake_case(kind)}" in the class')
    if term.unit not in ("token", "sequence"):
        raise ValueError(f'the losses of {name} are one a "token" or one a "sequence", got unit = {term.unit!r}')


def snake_case(name: str) -> str:
    """A class's name as a term's: `ReverseKL` to `reverse_kl`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
