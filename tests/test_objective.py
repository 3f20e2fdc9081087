"""Weights, schedules, and the one division."""

from __future__ import annotations

import pytest

from gakd import (
    Adversarial,
    CrossEntropy,
    ForwardKL,
    HingeGAN,
    JensenShannon,
    LogitReadout,
    MLPDiscriminator,
    ReverseKL,
    SkewReverseKL,
    ramp,
)
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


def test_terms_print_their_settings():
    written = (
        JensenShannon(0.3, temperature=2)
        + SkewReverseKL(0.1, detach_mixture=True)
        + ForwardKL(temperature=1.5, temperature_squared=False)
    )
    assert str(written).split(" + ") == [
        "1 * jensen_shannon(beta=0.3, temperature=2)",
        "1 * skew_reverse_kl(alpha=0.1, detach_mixture=True)",
        "1 * forward_kl(temperature=1.5, temperature_squared=False)",
    ]
    adversary = Adversarial(MLPDiscriminator(4), HingeGAN(r1=1, r2=0), LogitReadout(9, 4))
    assert str(0.1 * adversary) == "0.1 * adversarial(HingeGAN(r1=1, r2=0), MLPDiscriminator, LogitReadout)"


def test_means_divide_token_terms_by_tokens_and_the_rest_by_sequences():
    objective = CrossEntropy() + Sequence()
    means = objective.means({"cross_entropy": 80.0, "game": 6.0, "discriminator_accuracy": 2.0}, Counts(40, 4))
    assert means == {"cross_entropy": 2.0, "game": 1.5, "discriminator_accuracy": 0.5}


def test_a_batch_may_be_about_some_terms_only():
    coefficients = (0.5 * CrossEntropy() + 2 * ReverseKL()).coefficients(0, Counts(40, 4))
    assert coefficients.only("reverse_kl").terms == {"cross_entropy": 0.0, "reverse_kl": 0.05}
    assert coefficients.only("reverse_kl")._replace(terms={}) == coefficients._replace(terms={})
    with pytest.raises(
        ValueError, match=r"no term is named forward_kl: the objective has \['cross_entropy', 'reverse_kl'\]"
    ):
        coefficients.only("forward_kl")


def test_bad_objectives_are_refused_with_what_to_do():
    with pytest.raises(ValueError, match="share the name"):
        ReverseKL() + 0.1 * ReverseKL()
    with pytest.raises(TypeError, match="a weight is a number or a function of the step, got str"):
        "0.5" * ReverseKL()
    with pytest.raises(ValueError, match="needs supervised tokens"):
        (1 * CrossEntropy()).coefficients(0, Counts(0, 0))
