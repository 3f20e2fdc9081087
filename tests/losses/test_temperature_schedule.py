"""A temperature that is a schedule: at each step the term is the one with that number."""

from __future__ import annotations

import shutil
import warnings

import pytest
import torch

from gakd import Counts, CrossEntropy, Distiller, Divergence, LocalTeacher, PolicyGradient, ReverseKL, cosine, ramp
from gakd.losses import token_pass
from tests import tiny
from tests.losses.test_kernel import gradients, inputs
from tests.test_distiller import VOCAB, batch_of, sequences


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("build", [CrossEntropy, ReverseKL])
def test_each_step_has_the_loss_and_gradient_of_its_number(build, squared):
    cooling = cosine(4.0, 1.0, steps=4)
    batch, student = batch_of(sequences(3)), tiny.model(VOCAB, seed=1, scale=3.0)
    teacher = LocalTeacher(tiny.model(VOCAB, seed=2, scale=5.0))(batch)

    def run(term, step):
        student.zero_grad()
        output = Distiller(student, term)(batch, teacher, term.coefficients(step, Counts.over(batch)))
        output.loss.backward()
        return output.loss.detach(), [weight.grad.clone() for weight in student.parameters()]

    scheduled = build(cooling, squared)
    for step in (0, 1, 4):
        torch.testing.assert_close(run(scheduled, step), run(build(cooling(step), squared), step), rtol=0, atol=0)
    assert run(scheduled, 0)[0] != run(scheduled, 4)[0]


def test_the_term_at_a_step_has_a_number_and_leaves_the_schedule_alone():
    class Own(Divergence):
        name = "own"

    for term in (
        ReverseKL(ramp(4.0, steps=2)),
        Own(temperature=ramp(4.0, steps=2)),
        PolicyGradient(None, ramp(4.0, steps=2)),
    ):
        now = term.at(0)
        assert (now.temperature, type(now), now.name) == (2.0, type(term), term.name)
        assert term.at(5).temperature == 4.0
        assert callable(term.temperature)
        assert "temperature=ramp(4, start=0, steps=2)" in str(term)
    assert (ReverseKL(ramp(4.0, steps=2)).at(0).scale, ReverseKL(ramp(4.0), False).at(0).scale) == (4.0, 1.0)
    plain = ReverseKL(2)
    assert plain.at(3) is plain


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ReverseKL(ramp(2.0, start=3)).at(1), r"above 0, got 0.0 for ReverseKL at step 1, by ramp\(2, start=3"),
        (lambda: ReverseKL(lambda step: None).at(1), "above 0, got None"),
        (lambda: ReverseKL(float("inf")), "above 0, got inf"),
        (lambda: ReverseKL("2"), "above 0, got 2 for ReverseKL"),
        (lambda: ReverseKL(lambda: 2.0), "a temperature is a number or a function of the step"),
        (lambda: ReverseKL(ramp), r"above 0, got ramp\(0, start=0, steps=1\) for ReverseKL"),
    ],
)  # fmt: skip
def test_what_is_no_temperature_is_refused(build, message):
    with pytest.raises((TypeError, ValueError), match=message):
        build().at(0)


def test_the_engine_asks_for_the_term_at_a_step():
    hidden, head, labels, teacher = inputs()
    term = ReverseKL(cosine(2.0, 1.0))
    with pytest.raises(ValueError, match=r"temperature of reverse_kl is a schedule: .* term.at\(step\)"):
        token_pass(hidden, head, labels, [term], {"reverse_kl": 1.0}, teacher)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_a_schedule_compiles_nothing_anew():
    torch._dynamo.reset()  # what other tests compiled counts, too
    hidden, head, labels, teacher = inputs(torch.float32)
    coefficients = {"cross_entropy": 0.4, "reverse_kl": 0.7}
    cooling = cosine(4.0, 1.5, steps=4)
    for step in range(4):
        terms = [CrossEntropy(), ReverseKL(cooling).at(step)]
        limit = torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True)
        with warnings.catch_warnings(), limit:
            warnings.simplefilter("error", UserWarning)  # a failed compilation would fall back with a warning
            got = gradients(hidden, head, labels, terms, coefficients, teacher, kernel="compiled")
        eager = gradients(hidden, head, labels, terms, coefficients, teacher, kernel="eager")
        torch.testing.assert_close(got[0], eager[0], rtol=1e-5, atol=1e-5)
        for gradient, wanted in zip(got[2], eager[2], strict=True):
            torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5)
