"""The row pass: temperatures, shapes of logits, blocks, and the compiled kernel beside the eager one."""

from __future__ import annotations

import shutil
import warnings

import pytest
import torch

from gakd import (
    AdaptiveKL,
    AlphaBeta,
    CrossEntropy,
    ForwardKL,
    Head,
    JensenShannon,
    ReverseKL,
    SkewForwardKL,
    SkewReverseKL,
    TeacherOutput,
    TotalVariation,
    UniversalLogit,
)
from gakd.losses import compiled, kernel, row_pass, token_pass, token_values

ROWS, VOCAB = 21, 53
TERMS = [
    CrossEntropy(), ForwardKL(), ReverseKL(), JensenShannon(0.3), SkewForwardKL(0.1), SkewReverseKL(0.2),
    AdaptiveKL(0.5), AlphaBeta(0.3, 0.6), TotalVariation(),
    UniversalLogit(),
]  # fmt: skip
COEFFICIENTS = {term.name: 0.3 + 0.1 * index for index, term in enumerate(TERMS)}


def inputs(dtype=torch.float64, scale=1.0, softcap=None, teacher_softcap=None):
    torch.manual_seed(0)
    hidden = torch.randn(ROWS, 8, dtype=dtype, requires_grad=True)
    head = Head(torch.randn(VOCAB, 8, dtype=dtype, requires_grad=True), scale=scale, softcap=softcap)
    teacher_head = Head(torch.randn(VOCAB + 3, 12, dtype=dtype) / 2, scale=0.7, softcap=teacher_softcap)
    labels = torch.randint(0, VOCAB, (ROWS,))
    return hidden, head, labels, TeacherOutput(torch.randn(ROWS, 12, dtype=dtype), teacher_head)


def gradients(*arguments, **options):
    hidden, head = arguments[:2]
    loss, losses, *_ = token_pass(*arguments, **options)
    return loss, losses, torch.autograd.grad(loss, [hidden, head.weight])


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize("case", [{}, {"scale": 0.5}, {"softcap": 4.0, "teacher_softcap": 3.0, "scale": 1.3}], ids=str)
def test_each_term_at_its_own_temperature_in_one_pass(squared, case):
    terms = [CrossEntropy(temperature=1.5, temperature_squared=squared), ForwardKL(2.0, squared), ReverseKL()]
    coefficients = {"cross_entropy": 0.4, "forward_kl": 0.7, "reverse_kl": 1.1}
    hidden, head, labels, teacher = inputs(**case)
    loss, losses, got = gradients(hidden, head, labels, terms, coefficients, teacher, chunk_rows=8)
    z, z_teacher = head.logits(hidden), teacher.head.logits(teacher.hidden_NH, VOCAB)

    def log_probs(temperature):
        return (z / temperature).log_softmax(-1), (z_teacher / temperature).log_softmax(-1)

    log_q, log_p = log_probs(2.0)
    log_q1, log_p1 = log_probs(1.0)
    expected = {
        "cross_entropy": (2.25 if squared else 1) * -log_probs(1.5)[0].gather(1, labels[:, None]).squeeze(1),
        "forward_kl": (4 if squared else 1) * (log_p.exp() * (log_p - log_q)).sum(-1),
        "reverse_kl": (log_q1.exp() * (log_q1 - log_p1)).sum(-1),
    }
    total = sum(coefficients[name] * values.sum() for name, values in expected.items())
    torch.testing.assert_close(loss, total)
    for gradient, wanted in zip(got, torch.autograd.grad(total, [hidden, head.weight]), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-9, atol=1e-11)
    values = token_values(hidden, head, labels, terms, teacher)
    for name, wanted in expected.items():
        torch.testing.assert_close(losses[name], wanted.detach())
        torch.testing.assert_close(values[name], wanted.detach())


def test_every_closed_form_in_one_pass_equals_autograd_through_its_value():
    hidden, head, labels, teacher = inputs()
    _, losses, got = gradients(hidden, head, labels, TERMS, COEFFICIENTS, teacher, chunk_rows=5)
    log_q = head.logits(hidden).log_softmax(-1)
    log_p = teacher.head.logits(teacher.hidden_NH, VOCAB).log_softmax(-1)
    # Of adaptive KL the shares are constants to its gradient, which its value alone does not tell.
    plain = [term for term in TERMS if isinstance(term, CrossEntropy) is False and term.name != "adaptive_kl"]
    total = sum(COEFFICIENTS[term.name] * term.losses(log_q, log_p).sum() for term in plain)
    total = total + COEFFICIENTS["cross_entropy"] * torch.nn.functional.cross_entropy(log_q, labels, reduction="sum")
    _, _, adaptive = gradients(hidden, head, labels, [AdaptiveKL(0.5)], COEFFICIENTS, teacher)
    expected = torch.autograd.grad(total, [hidden, head.weight])
    for gradient, wanted, extra in zip(got, expected, adaptive, strict=True):
        torch.testing.assert_close(gradient, wanted + extra, rtol=1e-8, atol=1e-9)
    assert list(losses) == [term.name for term in TERMS]


@pytest.mark.parametrize("block_bytes", [1, 4 * VOCAB * 3, 2**30])
def test_blocks_change_nothing(block_bytes, monkeypatch):
    arguments = inputs(torch.float32)
    reference = gradients(*arguments[:3], TERMS, COEFFICIENTS, arguments[3])
    monkeypatch.setattr(kernel, "BLOCK_BYTES", block_bytes)
    loss, losses, got = gradients(*arguments[:3], TERMS, COEFFICIENTS, arguments[3])
    torch.testing.assert_close(loss, reference[0])
    for name, values in losses.items():
        torch.testing.assert_close(values, reference[1][name])
    for gradient, wanted in zip(got, reference[2], strict=True):
        torch.testing.assert_close(gradient, wanted)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_the_compiled_kernel_equals_the_eager_one_whatever_the_weights_and_rows():
    arguments = inputs(torch.float32, softcap=6.0)
    for step, rows in enumerate((ROWS, 13, 8, ROWS)):  # a ramp changes coefficients, a last chunk the rows
        hidden, head, labels, teacher = arguments
        part = hidden.detach()[:rows].requires_grad_(), head, labels[:rows], TERMS
        coefficients = {name: value * (1 + step) for name, value in COEFFICIENTS.items()}
        target = TeacherOutput(teacher.hidden_NH[:rows], teacher.head)
        # Once: no number of rows and no value of a coefficient is compiled in.
        limit = torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True)
        with warnings.catch_warnings(), limit:
            warnings.simplefilter("error", UserWarning)  # a failed compilation would fall back with a warning
            got = gradients(*part, coefficients, target, kernel="compiled")
        eager = gradients(*part, coefficients, target, kernel="eager")
        torch.testing.assert_close(got[0], eager[0], rtol=1e-5, atol=1e-5)
        for gradient, wanted in zip(got[2], eager[2], strict=True):
            torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5)


def test_without_compilation_the_eager_kernel_takes_over_with_a_warning(monkeypatch):
    def broken(function):
        def run(*_):
            raise RuntimeError("no compiler here")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setattr(row_pass, "compiled_pass", row_pass.as_asked(compiled.CompiledRows()))
    arguments = inputs()
    call = (*arguments[:3], TERMS, COEFFICIENTS, arguments[3])
    expected = gradients(*call)
    with pytest.warns(UserWarning, match="the eager kernel takes over: no compiler here"):
        got = gradients(*call, kernel="compiled")
    assert torch.equal(got[0], expected[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gradients(*call, kernel="compiled")  # said once
    with pytest.raises(ValueError, match="got 'fast'"):
        gradients(*call, kernel="fast")
