"""Schedules against their formulas, and a balanced weight against norms that plain autograd finds."""

from __future__ import annotations

import math

import pytest
import torch

from gakd import CrossEntropy, Distiller, ReverseKL, balanced, cosine, ramp, stepwise
from gakd.objective import Counts
from tests.test_distiller import Step, batch_of, sequences


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


def test_cosine_goes_from_the_first_weight_to_the_last_and_half_way_in_the_middle():
    falling = cosine(0.6, 0.2, start=3, steps=4)
    assert [falling(step) for step in (0, 3, 5, 7, 100)] == pytest.approx([0.6, 0.6, 0.4, 0.2, 0.2])
    assert falling(4) == pytest.approx(0.2 + 0.4 * (1 + math.sqrt(0.5)) / 2)
    assert [cosine(0.0, 1.0, steps=2)(step) for step in range(3)] == pytest.approx([0, 0.5, 1])


def test_stepwise_holds_each_weight_until_the_next():
    weight = stepwise({5: 0.1, 2: 0.3})
    assert [weight(step) for step in (0, 1, 2, 4, 5, 99)] == [0, 0, 0.3, 0.3, 0.1, 0.1]


def test_weights_print_as_they_are_written():
    def warm_up(step: int) -> float:
        return float(step)

    written = {
        "ramp(0.1, start=3, steps=2)": ramp(0.1, start=3, steps=2),
        "cosine(0, 0.1, start=5, steps=7)": cosine(0.0, 0.1, start=5, steps=7),
        "stepwise({0: 0.1, 9: 0})": stepwise({0: 0.1, 9: 0.0}),
        "balanced(0.3)": balanced(0.3),
        "balanced(ramp(0.3, start=4, steps=1))": balanced(ramp(0.3, start=4)),
        "warm_up(step)": warm_up,
        "0.25": 0.25,
    }
    for text, weight in written.items():
        assert str(weight * CrossEntropy()) == f"{text} * cross_entropy"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ramp(1.0, steps=0), "a ramp needs start >= 0 and steps >= 1, got start=0, steps=0"),
        (lambda: cosine(1.0, 0.0, start=-1), "a cosine needs start >= 0"),
        (lambda: stepwise({}), "at least one"),
        (lambda: balanced(0.1, smoothing=1.0), "smoothing .* got 1.0"),
        (lambda: balanced(0.1, initial=0.0), r"lies in \(0, limit\], got initial=0.0"),
    ],
)
def test_bad_weights_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


class BalancedStep(Step):
    """The step of `test_distiller`, its adversary weighed by gradients."""

    def __init__(self, weight) -> None:
        super().__init__()
        self.weight = weight
        self.objective = 0.5 * CrossEntropy() + 0.5 * ReverseKL() + weight * self.adversarial
        self.distiller = Distiller(self.student, self.objective).train()


def norms_at_the_hidden_states(step: BalancedStep, weight: float) -> tuple[float, float]:
    """Of the whole step's token terms and of its adversary at a weight, each through a run of its own."""
    batch, found = batch_of(sequences()), []
    for objective in (0.5 * CrossEntropy() + 0.5 * ReverseKL(), weight * step.adversarial):
        hidden: list[torch.Tensor] = []
        norm = step.student.model.norm.register_forward_hook(lambda *event, hidden=hidden: hidden.append(event[2]))
        distiller, teacher = Distiller(step.student, objective).train(), step.teacher(batch)
        coefficients = objective.coefficients(0, Counts(len(batch.labels_N), len(batch.lengths)))
        output = distiller(batch, teacher, coefficients)
        loss = output.loss
        if output.readout is not None:
            loss = loss + step.adversarial(output, teacher, batch, coefficients).loss
        (gradient,) = torch.autograd.grad(loss, hidden)
        found.append(float(gradient.norm()))
        norm.remove()
        step.adversarial.flush()
        step.adversarial.zero_grad()
    return found[0], found[1]


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_the_adversarys_gradient_is_held_at_its_share_of_the_token_terms(micro_batches):
    step = BalancedStep(balanced(0.25, initial=0.01, smoothing=0.0))
    assert step.weight(0) == 0.01
    rows = sequences()
    size = len(rows) // micro_batches
    step.run([batch_of(rows[start : start + size]) for start in range(0, len(rows), size)])
    assert step.objective.finish_step(lambda own: own) == {"adversarial_weight": 0.01}
    step.adversarial.zero_grad()
    weight = step.weight(1)
    token, adversary = norms_at_the_hidden_states(step, weight)
    assert adversary == pytest.approx(0.25 * token, rel=1e-4)
    assert 0 < weight != 0.01


def test_the_ratio_is_an_exponential_average_and_the_weight_has_a_limit():
    weight = balanced(0.5, initial=0.1, smoothing=0.75, limit=3.0)
    for step, (token, adversary) in enumerate([(4.0, 0.2), (1.0, 0.5)]):
        used = weight(step)
        weight.squares.copy_(torch.tensor([token**2, (used * adversary) ** 2]))
        weight.finish_step(lambda own: own)
    assert float(weight.ratio) == pytest.approx(0.75 * 4 / 0.2 + 0.25 * 1 / 0.5)
    assert weight(2) == 3.0


def test_nothing_is_measured_while_the_share_is_zero_or_where_a_gradient_is_zero_or_not_finite():
    weight = balanced(ramp(0.5, start=1))
    assert weight(0) == 0
    weight.squares.fill_(1.0)
    weight.finish_step(lambda own: own)
    assert math.isnan(float(weight.ratio))
    assert weight(1) == 0.01
    for squares in ([1.0, 0.0], [1.0, math.inf], [math.nan, 1.0]):
        weight.squares.copy_(torch.tensor(squares))
        weight.finish_step(lambda own: own)
        assert math.isnan(float(weight.ratio))
        assert weight.squares.tolist() == [0, 0]


def test_the_norms_are_summed_over_ranks_before_the_root():
    weight = balanced(1.0, initial=0.5)
    weight(0)
    weight.squares.copy_(torch.tensor([9.0, 1.0]))
    weight.finish_step(lambda own: own + torch.tensor([16.0, 3.0]))
    assert weight(1) == pytest.approx(5 / 2 * 0.5)


def test_its_state_is_saved_with_the_adversary_and_it_weighs_nothing_else():
    step = BalancedStep(balanced(0.25))
    assert "balance.ratio" in step.adversarial.state_dict()
    assert not any("balance" in name for name, _ in step.adversarial.named_parameters())
    with pytest.raises(
        ValueError, match=r"balanced\(0.5\) weighs an adversary against the token terms, got it for cross_entropy"
    ):
        Distiller(step.student, balanced(0.5) * CrossEntropy())


@pytest.mark.parametrize(
    "build",
    [
        lambda: ramp(math.nan), lambda: ramp(math.inf), lambda: ramp(1.0, start=math.nan), lambda: ramp(1.0, steps=math.inf),
        lambda: cosine(1.0, math.nan), lambda: stepwise({0: math.inf}),
    ],
)  # fmt: skip
def test_a_schedule_of_numbers_that_are_none_is_refused(build):
    with pytest.raises(ValueError, match=r"finite numbers|needs start"):
        build()
