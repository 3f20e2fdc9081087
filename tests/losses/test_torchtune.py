"""torchtune's losses as terms: the same number as torchtune itself, row by row, and the same gradients through the engine."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gakd import CrossEntropy, Head, ReverseKL, TeacherOutput, from_torchtune
from gakd.losses import token_pass

losses = pytest.importorskip("torchtune.modules.loss", reason="the extra gakd[torchtune]")

N, V, H = 7, 13, 5
WITH_TEACHER = {
    "ForwardKLLoss": {},
    "ReverseKLLoss": {},
    "SymmetricKLLoss": {"sym_kd_ratio": 0.3},
    "ForwardKLWithChunkedOutputLoss": {"num_output_chunks": 3},
    "ReverseKLWithChunkedOutputLoss": {"num_output_chunks": 3},
    "SymmetricKLWithChunkedOutputLoss": {"num_output_chunks": 3, "sym_kd_ratio": 0.3},
}
EVERY = {**WITH_TEACHER, "CEWithChunkedOutputLoss": {"num_output_chunks": 3}}


def material():
    torch.manual_seed(0)
    hidden, weight = torch.randn(N, H, requires_grad=True), torch.randn(V, H, requires_grad=True)
    return hidden, Head(weight), torch.randint(0, V, (N,)), TeacherOutput(torch.randn(N, H), Head(torch.randn(V, H)))


@pytest.mark.parametrize("name", EVERY)
def test_value_and_gradients_are_torchtunes_own(name):
    loss = getattr(losses, name)(**EVERY[name])
    term = from_torchtune(loss)
    assert term.needs_teacher is (name in WITH_TEACHER)
    hidden, head, labels, teacher = material()
    given = [hidden @ head.weight.T] + ([teacher.logits()] if term.needs_teacher else [])
    if "Chunked" in name:
        expected = loss(*(list(own[None].chunk(3, dim=1)) for own in given), labels[None])
    else:
        expected = loss(*given, labels)
    wanted = torch.autograd.grad(expected, (hidden, head.weight))

    result = token_pass(hidden, head, labels, [term], {term.name: 1 / N}, teacher, chunk_rows=3)
    torch.testing.assert_close(result.loss, expected)
    torch.testing.assert_close(result.losses[term.name].mean(), expected)
    result.loss.backward()
    torch.testing.assert_close(hidden.grad, wanted[0])
    torch.testing.assert_close(head.weight.grad, wanted[1])


def test_rows_are_unreduced():
    term = from_torchtune(losses.ReverseKLLoss())
    hidden, head, labels, teacher = material()
    ours = token_pass(hidden, head, labels, [term, ReverseKL()], {term.name: 1.0, "reverse_kl": 1.0}, teacher).losses
    torch.testing.assert_close(ours[term.name], ours["reverse_kl"])


def test_it_adds_up_with_other_terms_at_a_temperature():
    term = from_torchtune(losses.ReverseKLLoss(), name="theirs", temperature=2.0)
    assert str(0.5 * CrossEntropy() + 2 * term) == "0.5 * cross_entropy + 2 * theirs(temperature=2)"
    hidden, head, labels, teacher = material()
    (expected,) = torch.autograd.grad(
        token_pass(hidden, head, labels, [ReverseKL(temperature=2.0)], {"reverse_kl": 1.0}, teacher).loss, hidden
    )
    (found,) = torch.autograd.grad(token_pass(hidden, head, labels, [term], {"theirs": 1.0}, teacher).loss, hidden)
    torch.testing.assert_close(found, expected)


def test_losses_of_something_else_are_refused():
    class Preference(nn.Module):
        def forward(self, policy_chosen_logps, policy_rejected_logps):
            return policy_chosen_logps

    with pytest.raises(TypeError, match=r"got Preference of \(policy_chosen_logps, policy_rejected_logps\)"):
        from_torchtune(Preference())
