"""The objective: a weighted sum of terms, the schedules of its weights, and the only division in the project.

Terms return unreduced losses, per token or per sequence. `Objective.coefficients` turns each weight into the factor that
multiplies those losses: the weight over the number of tokens (or sequences) of the whole optimizer step, over all its
micro-batches and all ranks. So neither the micro-batch size, nor accumulation, nor the world size changes a gradient.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from torch import Tensor

from gakd.weights import Balanced, Weight, weight_at, weight_text


class Counts(NamedTuple):
    """What one optimizer step holds, over all its micro-batches and all ranks."""

    tokens: int  # supervised tokens
    sequences: int  # sequences with at least one supervised token
    world_size: int = 1

    def of(self, unit: Literal["token", "sequence"]) -> int:
        return self.tokens if unit == "token" else self.sequences


class Coefficients(NamedTuple):
    """The factors of one optimizer step.

    `terms[name]` multiplies the losses of a term in the student's scalar. Data-parallel backends average gradients over
    ranks, so it carries the world size. `per_sequence` is the plain mean, for the discriminator, whose gradients are
    summed over ranks. `step_rows` is about how many supervised rows a rank sees in the step: what is formed once a step
    has to pay off over them.
    """

    terms: dict[str, float]
    per_sequence: float
    step_rows: float

    def only(self, *names: str) -> Coefficients:
        """The other terms switched off: for a batch that not all of an objective speaks about.

        ValueError for a name that is no term's.
        """
        if unknown := set(names) - self.terms.keys():
            raise ValueError(f"no term is named {sorted(unknown)[0]}: the objective has {sorted(self.terms)}")
        return self._replace(terms={name: value * (name in names) for name, value in self.terms.items()})


class Term:
    """One summand of an objective. `2 * term`, `schedule * term` and `term + term` build an `Objective`."""

    name: str
    unit: Literal["token", "sequence"] = "token"

    def __mul__(self, weight: Weight) -> Objective:
        if not (callable(weight) or isinstance(weight, (int, float))):
            raise TypeError(
                f"a weight is a number or a function of the step, got {type(weight).__name__} for {self.name}"
            )
        return Objective(((weight, self),))

    __rmul__ = __mul__

    def __str__(self) -> str:
        """The name and what was set: `jensen_shannon(beta=0.5)`. Flags and temperatures only where they are not the default."""
        shown = []
        for name, parameter in inspect.signature(type(self).__init__).parameters.items():
            value = getattr(self, name, inspect.Parameter.empty)
            quiet = name.startswith("temperature") or isinstance(value, bool)
            if isinstance(value, (bool, int, float)) and not (quiet and value == parameter.default):
                shown.append(f"{name}={value if isinstance(value, bool) else format(value, 'g')}")
        return f"{self.name}({', '.join(shown)})" if shown else self.name

    def __add__(self, other: Term | Objective) -> Objective:
        return Objective(((1.0, self),)) + other


class Objective:
    """`sum_k weight_k(step) * mean(losses_k)`, means over the tokens or sequences of the whole optimizer step."""

    def __init__(self, terms: tuple[tuple[Weight, Term], ...]) -> None:
        names = [term.name for _, term in terms]
        if repeated := {name for name in names if names.count(name) > 1}:
            raise ValueError(
                f"two terms share the name {sorted(repeated)}: set `.name` of one of them, logs need to tell them apart"
            )
        self.terms = terms

    def __add__(self, other: Term | Objective) -> Objective:
        return Objective(self.terms + (other.terms if isinstance(other, Objective) else ((1.0, other),)))

    def __iter__(self) -> Iterator[Term]:
        return (term for _, term in self.terms)

    def __str__(self) -> str:
        return " + ".join(f"{weight_text(weight)} * {term}" for weight, term in self.terms)

    def coefficients(self, step: int, counts: Counts) -> Coefficients:
        """The factors of the terms at `step`; ValueError where the step supervises nothing."""
        if counts.tokens < 1 or counts.sequences < 1:
            raise ValueError(f"an optimizer step needs supervised tokens, got {counts}: check labels and max_length")
        factors = {
            term.name: weight_at(weight, step) * counts.world_size / counts.of(term.unit) for weight, term in self.terms
        }
        return Coefficients(factors, per_sequence=1 / counts.sequences, step_rows=counts.tokens / counts.world_size)

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
