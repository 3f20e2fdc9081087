"""Weights, schedules, and the one division."""

from __future__ import annotations

import pytest

from gakd import CrossEntropy, ForwardKL, ReverseKL, ramp
from gakd.objective import Counts, Objective, Term


class Sequence(Term):
    name = "game"
    unit = "sequence"


def test_terms_add_up_in_any_spelling():
    written = 0.5 * CrossEntropy() + ReverseKL() * 2 + ramp(0.1, start=3, steps=2) * Sequence() + ForwardKL()
    assert isinstance(written, Objective)
    assert [term.name for term in written] == ["cross_entropy", "reverse_kl", "game", "forward_kl"]
    assert str(written) == "0.5 * cross_entropy + 2 * reverse_kl + ramp(0.1, start=3, steps=2) * game + 1 * forward_kl"
    assert str(CrossEntropy() + ReverseKL()) == "1 * cross_entropy + 1 * reverse_kl"


def test_coefficients_are_weights_over_the_counts_of_the_whole_step():
    objective = 0.5 * CrossEntropy() + 3 * Sequence()
    coefficients = objective.coefficients(0, Counts(tokens=40, sequences=8, world_size=2))
    # Ranks are averaged by the backend, so the sum over ranks needs the world size back.
    assert coefficients.terms == {"cross_entropy": 0.5 * 2 / 40, "game": 3 * 2 / 8}
    assert coefficients.per_sequence == 1 / 8


def test_a_weight_may_be_any_function_of_the_step():
    objective = (lambda step: step**2) * CrossEntropy()
    counts = Counts(1, 1)
    assert [objective.coefficients(step, counts).terms["cross_entropy"] for step in range(4)] == [0, 1, 4, 9]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((0.4,), [0.4, 0.4, 0.4, 0.4]),
        ((0.4, 2), [0, 0, 0.4, 0.4]),
        ((0.4, 1, 4), [0, 0.1, 0.2, 0.3]),
        ((1.0, 0, 2), [0.5, 1, 1, 1]),
    ],
)
def test_ramp(arguments, expected):
    assert [ramp(*arguments)(step) for step in range(4)] == pytest.approx(expected)


def test_means_divide_token_terms_by_tokens_and_the_rest_by_sequences():
    objective = CrossEntropy() + Sequence()
    means = objective.means({"cross_entropy": 80.0, "game": 6.0, "discriminator_accuracy": 2.0}, Counts(40, 4))
    assert means == {"cross_entropy": 2.0, "game": 1.5, "discriminator_accuracy": 0.5}


def test_bad_objectives_are_refused_with_what_to_do():
    with pytest.raises(ValueError, match="share the name"):
        ReverseKL() + 0.1 * ReverseKL()
    with pytest.raises(TypeError, match="a weight is a number or a function of the step, got str"):
        "0.5" * ReverseKL()
    with pytest.raises(ValueError, match="needs supervised tokens"):
        (1 * CrossEntropy()).coefficients(0, Counts(0, 0))
    with pytest.raises(ValueError, match="steps >= 1"):
        ramp(1.0, steps=0)
