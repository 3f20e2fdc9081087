"""What people type first: the algebra of terms and schedules, its refusals, and what an objective says of itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from gakd import (
    Adversarial,
    CenteredLogitReadout,
    Counts,
    CrossEntropy,
    Distiller,
    Divergence,
    ForwardKL,
    JensenShannon,
    KLToReference,
    LocalTeacher,
    MLPDiscriminator,
    Objective,
    PolicyGradient,
    ReverseKL,
    RouterBalance,
    SkewForwardKL,
    SkewReverseKL,
    Term,
    balanced,
    cosine,
    from_torchtune,
    ramp,
)
from gakd.losses import AdaptiveKL, AlphaBeta, TotalVariation, UniversalLogit
from tests import tiny
from tests.test_distiller import VOCAB, batch_of, sequences

COUNTS = Counts(tokens=1, sequences=1)


def weights(objective: Objective | Term, step: int) -> dict[str, float]:
    return objective.coefficients(step, COUNTS).terms


def half_way(step: int) -> float:
    return step / 2


@pytest.mark.parametrize(
    ("objective", "expected", "text"),
    [
        (0.5 * (CrossEntropy() + 2 * ReverseKL()), [(0.5, 1)] * 3, "0.5 * cross_entropy + 1 * reverse_kl"),
        ((CrossEntropy() + ReverseKL()) * 0.5, [(0.5, 0.5)] * 3, "0.5 * cross_entropy + 0.5 * reverse_kl"),
        ((CrossEntropy() + ReverseKL()) / 4, [(0.25, 0.25)] * 3, "0.25 * cross_entropy + 0.25 * reverse_kl"),
        (sum([CrossEntropy(), 3 * ReverseKL()]), [(1, 3)] * 3, "1 * cross_entropy + 3 * reverse_kl"),
        (CrossEntropy() - 0.5 * ReverseKL(), [(1, -0.5)] * 3, "1 * cross_entropy + -0.5 * reverse_kl"),
        (-CrossEntropy() - ReverseKL(), [(-1, -1)] * 3, "-1 * cross_entropy + -1 * reverse_kl"),
        (
            2 * (half_way * CrossEntropy() + ReverseKL() / 2),
            [(0, 1), (1, 1), (2, 1)],
            "2 * half_way(step) * cross_entropy + 1 * reverse_kl",
        ),
        (
            ramp(1.0, start=1) * (CrossEntropy() + 0.5 * ReverseKL()),
            [(0, 0), (1, 0.5), (1, 0.5)],
            "ramp(1, start=1, steps=1) * cross_entropy + ramp(1, start=1, steps=1) * 0.5 * reverse_kl",
        ),
        (
            (1 - ramp(1.0, steps=2)) * CrossEntropy() + ramp(1.0, steps=2) * ReverseKL(),
            [(0.5, 0.5), (0, 1), (0, 1)],
            "(1 + -1 * ramp(1, start=0, steps=2)) * cross_entropy + ramp(1, start=0, steps=2) * reverse_kl",
        ),
        (
            np.float32(0.5) * CrossEntropy() + ReverseKL() * np.float64(2),
            [(0.5, 2)] * 3,
            "0.5 * cross_entropy + 2 * reverse_kl",
        ),
    ],
)
def test_objectives_are_weighed_and_added_as_numbers_are(objective, expected, text):
    assert [tuple(weights(objective, step).values()) for step in range(3)] == expected
    assert str(objective) == repr(objective) == text


@pytest.mark.parametrize(
    ("schedule", "value"),
    [
        (2 * ramp(0.1, steps=4), lambda step: 2 * ramp(0.1, steps=4)(step)),
        (ramp(1.0, steps=4) * half_way * 3, lambda step: 3 * ramp(1.0, steps=4)(step) * step / 2),
        (ramp(0.5) / 2 + cosine(1.0, 0.0, steps=3), lambda step: 0.25 + cosine(1.0, 0.0, steps=3)(step)),
        (half_way + ramp(1.0, start=2) - 0.5, lambda step: step / 2 + (step >= 2) - 0.5),
        (-(1 - ramp(1.0, steps=4)), lambda step: ramp(1.0, steps=4)(step) - 1),
        (sum([ramp(0.25), ramp(0.5, start=1)]), lambda step: 0.25 + 0.5 * (step >= 1)),
    ],
)
def test_schedules_add_and_multiply_at_each_step(schedule, value):
    for step in range(5):
        assert schedule(step) == pytest.approx(value(step))
        assert weights(schedule * CrossEntropy(), step)["cross_entropy"] == pytest.approx(value(step))


def test_a_sum_in_a_product_stands_in_brackets():
    assert str(2 * (ramp(0.1) + half_way) * CrossEntropy()) == (
        "2 * (ramp(0.1, start=0, steps=1) + half_way(step)) * cross_entropy"
    )


TERMS = [
    CrossEntropy, ForwardKL, ReverseKL, JensenShannon, SkewForwardKL, SkewReverseKL, AdaptiveKL, AlphaBeta, TotalVariation,
    UniversalLogit, PolicyGradient, KLToReference, RouterBalance,
]  # fmt: skip


@pytest.mark.parametrize("build", TERMS)
def test_every_term_takes_a_name_and_says_what_it_is(build):
    renamed, plain = build(name="own"), build()
    assert renamed.name == "own"
    assert plain.name == type(plain).name
    text = str(renamed)
    assert text.startswith(f"{plain.name}(")
    assert text.endswith("name=own)")
    both = plain + 0.5 * renamed
    assert list(weights(both, 0)) == [plain.name, "own"]
    counts = Counts(tokens=4, sequences=2)
    means = both.means({plain.name: 8.0, "own": 8.0}, counts)
    assert means == dict.fromkeys([plain.name, "own"], 8.0 / counts.of(build.unit))


def test_two_terms_of_a_class_are_two_losses():
    """Of one student: what each is alone, in one pass, and their gradients added."""
    batch, student = batch_of(sequences()), tiny.model(VOCAB, seed=1)
    teacher = LocalTeacher(tiny.model(VOCAB, width=48, tied=False, seed=2, scale=5.0))(batch)
    cool, warm = ReverseKL(), ReverseKL(temperature=2, name="warm")

    def run(objective):
        student.zero_grad()
        distiller = Distiller(student, objective)
        coefficients = distiller.objective.coefficients(0, Counts.over(batch))
        output = distiller(batch, teacher, coefficients)
        output.loss.backward()
        return output.token_losses, [weight.grad.clone() for weight in student.parameters()]

    losses, gradients = run(cool + 0.5 * warm)
    (own, first), (renamed, second) = run(cool), run(0.5 * warm)
    assert set(losses) == {"reverse_kl", "warm"}
    torch.testing.assert_close(losses["reverse_kl"], own["reverse_kl"])
    torch.testing.assert_close(losses["warm"], renamed["warm"])
    assert not torch.allclose(losses["warm"], losses["reverse_kl"])
    for both, one, other in zip(gradients, first, second, strict=True):
        torch.testing.assert_close(both, one + other, rtol=1e-4, atol=1e-6)


def test_a_term_alone_and_a_list_are_objectives():
    batch = batch_of(sequences(3))
    teacher = LocalTeacher(tiny.model(VOCAB, seed=2))(batch)
    for given, text in (
        (ReverseKL(), "1 * reverse_kl"),
        ([0.5 * CrossEntropy(), ReverseKL()], "0.5 * cross_entropy + 1 * reverse_kl"),
    ):
        distiller = Distiller(tiny.model(VOCAB, seed=1), given)
        assert str(distiller.objective) == text
        output = distiller(batch, teacher, distiller.objective.coefficients(0, Counts.over(batch)))
        assert all(len(losses_N) == len(batch.rows_N) for losses_N in output.token_losses.values())
    assert ReverseKL().coefficients(3, COUNTS) == (1 * ReverseKL()).coefficients(3, COUNTS)


def test_counts_over_micro_batches_are_their_tokens_and_their_sequences_with_any():
    batches = batch_of(sequences(3)), batch_of(sequences(2, seed=1))
    tokens = sum(int(batch.mask.sum()) for batch in batches)
    assert Counts.over(*batches) == Counts(tokens, 5, 1)
    silent = batches[0]._replace(lengths=(4, 0, 2))
    assert Counts.over(silent) == Counts(6, 2, 1)


class LeastSquares:
    def __init__(self):
        self.penalties = {}

    def student(self, fake_B, real_B):
        return (fake_B - 1).square()

    def discriminator(self, fake_B, real_B):
        return (real_B - 1).square() + fake_B.square()


def test_an_objective_prints_games_of_ones_own_by_class():
    adversarial = Adversarial(MLPDiscriminator(8), LeastSquares(), CenteredLogitReadout(VOCAB))
    assert repr(CrossEntropy() + 0.1 * adversarial) == (
        "1 * cross_entropy + 0.1 * adversarial(LeastSquares, MLPDiscriminator, LogitReadout)"
    )
    assert repr(ReverseKL(temperature=2)) == "reverse_kl(temperature=2)"
    assert repr(Nameless()) == "Nameless"


class Nameless(Divergence):
    def losses(self, student_log_probs_NV, teacher_log_probs_NV):
        return (student_log_probs_NV - teacher_log_probs_NV).abs().sum(-1)


class Empty(Nameless):
    name = ""


class Batchwise(Term):
    name, unit = "batchwise", "batch"


class Weighing(nn.Module):
    def forward(self, step, more):
        return step


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: math.nan * CrossEntropy(), "a weight is a finite number, got nan for cross_entropy"),
        (lambda: CrossEntropy() * -math.inf, "a weight is a finite number, got -inf"),
        (lambda: math.nan * (CrossEntropy() + ReverseKL()), "a weight is a finite number, got nan for an objective"),
        (lambda: math.inf * ramp(1.0), "a weight is a finite number, got inf for a schedule"),
        (lambda: torch.tensor(0.5) * CrossEntropy(), "a number or a function of the step, got Tensor for cross_entropy"),
        (lambda: None * CrossEntropy(), "got NoneType for cross_entropy"),
        (lambda: (lambda: 0.5) * CrossEntropy(), r"got <lambda>\(\) for cross_entropy"),
        (lambda: cosine * CrossEntropy(), r"got cosine\(first, last, start, steps\) for cross_entropy"),
        (lambda: CrossEntropy() * ReverseKL, "got the class ReverseKL for cross_entropy"),
        (lambda: CrossEntropy() * ReverseKL(), "they do not multiply: got ReverseKL times cross_entropy"),
        (lambda: CrossEntropy() + ReverseKL, r"got the class ReverseKL: write ReverseKL\(...\)"),
        (lambda: CrossEntropy() + 1, "unsupported operand"),
        (lambda: 1 + CrossEntropy(), "unsupported operand"),
        (lambda: (CrossEntropy() + ReverseKL()) / 0, r"a number other than 0: \(1 \* cross_entropy"),
        (lambda: 0.5 * (CrossEntropy() + balanced(0.3) * ReverseKL()), "follows the token terms by itself"),
        (lambda: 0.5 * Nameless(), 'Nameless has no name, .* write name = "nameless" in the class'),
        (lambda: CrossEntropy() + Empty(), "Empty has the name ''"),
        (lambda: 1 * Batchwise(), "got unit = 'batch'"),
        (lambda: ReverseKL() + ReverseKL(temperature=2), r'share the name reverse_kl, .* ReverseKL\(name="..."\)'),
        (lambda: Objective([CrossEntropy(), ReverseKL()]), "a sum of weighted terms, such as .* got CrossEntropy"),
        (lambda: Objective(CrossEntropy()), "a sum of weighted terms, such as .* got CrossEntropy"),
        (lambda: Distiller(tiny.model(VOCAB), {"reverse_kl": 1.0}), "a sum of weighted terms, such as .* got dict"),
        (lambda: Distiller(tiny.model(VOCAB), nn.CrossEntropyLoss()), "such as .* got CrossEntropyLoss"),
        (lambda: Distiller(tiny.model(VOCAB), []), "an objective needs a term, got none"),
        (lambda: weights((lambda step: 1 / step if step else math.inf) * CrossEntropy(), 0), "is inf at step 0"),
        (lambda: weights(ramp * CrossEntropy(), 2), r"cross_entropy, ramp\(step\), is ramp\(2, .* at step 2"),
        (lambda: (1 * CrossEntropy()).coefficients(0, 40), r"Counts.over\(\*micro_batches\), got int"),
        (lambda: Counts.over([batch_of(sequences(2))]), r"Counts.over\(\*micro_batches\), got list"),
        (lambda: JensenShannon(ramp(0.5)), r"lies in \[0, 1\], got ramp\(0.5"),
        (lambda: SkewReverseKL("0.5"), r"lies in \[0, 1\), got 0.5"),
        (lambda: AlphaBeta(0.5, None), "exponents and finite, got 0.5 and None"),
    ],
)  # fmt: skip
def test_what_is_no_objective_is_refused_in_one_line(build, message):
    with pytest.raises((TypeError, ValueError), match=message) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_a_weight_may_be_negative_in_python():
    assert weights(-0.5 * CrossEntropy(), 0) == {"cross_entropy": -0.5}


def test_a_torchtune_loss_keeps_its_name():
    class Plain(nn.Module):
        def forward(self, logits, labels):
            return torch.nn.functional.cross_entropy(logits, labels)

    assert from_torchtune(Plain()).name == "torchtune_plain"
    assert str(from_torchtune(Plain(), "mine", temperature=2)) == "mine(temperature=2)"


def test_arguments_of_the_distiller_that_are_others_are_named():
    batch = batch_of(sequences(2))
    teacher = LocalTeacher(tiny.model(VOCAB, seed=2))
    distiller = Distiller(tiny.model(VOCAB, seed=1), ReverseKL())
    coefficients = distiller.objective.coefficients(0, Counts.over(batch))
    for arguments, message in (
        (({"input_ids": batch.input_ids}, teacher(batch), coefficients), "a batch is a gakd.Batch, got dict"),
        ((batch, teacher.model, coefficients), r"teacher\(batch\), got Qwen3ForCausalLM"),
        ((batch, teacher(batch), 1.0), r"objective.coefficients\(step, counts\), got float"),
        ((batch, teacher(batch), CrossEntropy().coefficients(0, COUNTS)), "of another objective: they lack reverse_kl"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            distiller(*arguments)
    with pytest.raises(TypeError, match=r"a batch is a gakd\.Batch, got dict"):
        teacher({"input_ids": batch.input_ids})
