"""Divergences and closed-form gradients against plain float64 formulas and autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gakd import functional
from gakd.divergences import CrossEntropy, Divergence, ForwardKL, JensenShannon, ReverseKL
from gakd.types import TokenChunk


def direct(name: str, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, beta: float) -> Tensor:
    """Each loss as its textbook formula on probabilities, row by row, token by token."""
    losses = []
    for student_row, teacher_row, label in zip(student_logits, teacher_logits, labels, strict=True):
        q, p = student_row.softmax(0), teacher_row.softmax(0)
        if name == "cross_entropy":
            losses.append(-q[label].log())
            continue
        total = torch.zeros((), dtype=q.dtype)
        for q_v, p_v in zip(q, p, strict=True):
            m_v = beta * p_v + (1 - beta) * q_v
            total = (
                total
                + {
                    "forward_kl": lambda q_v=q_v, p_v=p_v: p_v * (p_v / q_v).log(),
                    "reverse_kl": lambda q_v=q_v, p_v=p_v: q_v * (q_v / p_v).log(),
                    "jensen_shannon": lambda q_v=q_v, p_v=p_v, m_v=m_v: (
                        beta * p_v * (p_v / m_v).log() + (1 - beta) * q_v * (q_v / m_v).log()
                    ),
                }[name]()
            )
        losses.append(total)
    return torch.stack(losses)


TERMS = [CrossEntropy(), ForwardKL(), ReverseKL(), JensenShannon(0.5), JensenShannon(0.1), JensenShannon(0.9)]


@pytest.mark.parametrize("term", TERMS, ids=lambda term: f"{term.name}-{getattr(term, 'beta', '')}")
def test_value_and_gradient_equal_float64_autograd(term):
    torch.manual_seed(0)
    student_logits = (3 * torch.randn(5, 17, dtype=torch.float64)).requires_grad_()
    teacher_logits = 3 * torch.randn(5, 17, dtype=torch.float64)
    labels = torch.randint(0, 17, (5,))
    expected = direct(term.name, student_logits, teacher_logits, labels, getattr(term, "beta", 0.5))
    (expected_gradient,) = torch.autograd.grad(expected.sum(), student_logits)
    chunk = TokenChunk(student_logits.detach().log_softmax(-1), teacher_logits.log_softmax(-1), labels)
    losses, gradient = term.losses_and_gradient(chunk)
    torch.testing.assert_close(losses, expected.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(term.chunk_losses(chunk), losses, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("term", TERMS[1:], ids=lambda term: f"{term.name}-{getattr(term, 'beta', '')}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_divergence_and_gradient_vanish_exactly_where_the_models_agree(term, dtype):
    torch.manual_seed(1)
    log_probs = (4 * torch.randn(8, 33, dtype=dtype)).log_softmax(-1)
    losses, gradient = term.losses_and_gradient(
        TokenChunk(log_probs, log_probs.clone(), torch.zeros(8, dtype=torch.long))
    )
    assert torch.count_nonzero(losses) == 0
    assert torch.count_nonzero(gradient) == 0


@pytest.mark.parametrize("term", TERMS[1:], ids=lambda term: f"{term.name}-{getattr(term, 'beta', '')}")
def test_divergences_are_finite_and_not_negative_on_near_certain_rows(term):
    student = torch.tensor([[200.0, 0.0, -200.0], [0.0, 300.0, 0.0]]).log_softmax(-1)
    teacher = torch.tensor([[-200.0, 0.0, 200.0], [0.0, 0.0, 300.0]]).log_softmax(-1)
    losses, gradient = term.losses_and_gradient(TokenChunk(student, teacher, torch.zeros(2, dtype=torch.long)))
    assert torch.isfinite(losses).all()
    assert torch.isfinite(gradient).all()
    assert (losses > 0).all()


def test_jensen_shannon_is_bounded_and_has_the_kl_divergences_as_its_ends():
    torch.manual_seed(2)
    log_q, log_p = (5 * torch.randn(2, 16, 40)).log_softmax(-1)
    assert (functional.jensen_shannon(log_q, log_p, 0.5) <= torch.log(torch.tensor(2.0)) + 1e-6).all()
    torch.testing.assert_close(functional.jensen_shannon(log_q, log_p, 0.0), functional.forward_kl(log_q, log_p))
    torch.testing.assert_close(functional.jensen_shannon(log_q, log_p, 1.0), functional.reverse_kl(log_q, log_p))
    # Near its ends the divergence over beta (or 1 - beta) tends to the KL divergence it is named after.
    log_q, log_p = torch.randn(2, 16, 40, dtype=torch.float64).log_softmax(-1)
    near_zero, near_one = (functional.jensen_shannon(log_q, log_p, beta) / 1e-6 for beta in (1e-6, 1 - 1e-6))
    torch.testing.assert_close(near_zero, functional.forward_kl(log_q, log_p), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(near_one, functional.reverse_kl(log_q, log_p), rtol=1e-3, atol=1e-4)


class Hellinger(Divergence):
    """The example of the README: a divergence by its formula alone."""

    name = "hellinger"

    def losses(self, student_log_probs_NV: Tensor, teacher_log_probs_NV: Tensor) -> Tensor:
        return (student_log_probs_NV.mul(0.5).exp() - teacher_log_probs_NV.mul(0.5).exp()).square().sum(-1) / 2


def test_a_divergence_given_by_its_formula_alone_gets_the_right_gradient():
    torch.manual_seed(3)
    logits = torch.randn(4, 9, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(4, 9, dtype=torch.float64).softmax(-1)
    expected = 1 - (logits.softmax(-1) * teacher).sqrt().sum(-1)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), logits)
    chunk = TokenChunk(logits.detach().log_softmax(-1), teacher.log(), torch.zeros(4, dtype=torch.long))
    losses, gradient = Hellinger().losses_and_gradient(chunk)
    torch.testing.assert_close(losses, expected.detach())
    torch.testing.assert_close(gradient, expected_gradient)


def test_a_divergence_that_returns_the_wrong_shape_is_told_what_to_return():
    class Summed(Divergence):
        name = "summed"

        def losses(self, student_log_probs_NV: Tensor, teacher_log_probs_NV: Tensor) -> Tensor:
            return (student_log_probs_NV - teacher_log_probs_NV).sum()

    log_probs = torch.randn(4, 9).log_softmax(-1)
    with pytest.raises(ValueError, match=r"summed.losses must return one loss a row, \(4,\), got \(\)"):
        Summed().losses_and_gradient(TokenChunk(log_probs, log_probs, torch.zeros(4, dtype=torch.long)))


@pytest.mark.parametrize("beta", [-0.1, 1.1])
def test_jensen_shannon_refuses_a_beta_outside_the_unit_interval(beta):
    with pytest.raises(ValueError, match="lies in"):
        JensenShannon(beta)
