"""Edges of the arithmetic: excluded tokens, large logits, large vocabularies, heads of two widths; against float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

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
from gakd.adversary.published import floored_reverse_kl
from gakd.losses import functional, token_pass, token_values
from gakd.losses.kernel import log_probs_and_probs

OFF = -math.inf
TERMS = {
    "cross_entropy": CrossEntropy(), "forward_kl": ForwardKL(), "reverse_kl": ReverseKL(), "jsd": JensenShannon(0.5),
    "jsd 0.1": JensenShannon(0.1), "skew forward": SkewForwardKL(0.1), "skew reverse": SkewReverseKL(0.1),
    "adaptive": AdaptiveKL(0.5), "alpha beta": AlphaBeta(0.5, 0.5), "alpha beta (1, 0)": AlphaBeta(1.0, 0.0),
    "tv": TotalVariation(), "universal": UniversalLogit(),
}  # fmt: skip
# Logits of teacher and student over five tokens; the label is token 0.
CASES = {
    "both exclude a token": ([2.0, 0.5, -1.0, 0.3, OFF], [0.1, 1.5, -0.2, 0.9, OFF]),
    "both exclude all but one": ([1.0, OFF, OFF, OFF, OFF], [3.0, OFF, OFF, OFF, OFF]),
    "the teacher excludes": ([2.0, 0.5, OFF, 0.3, OFF], [0.1, 1.5, -0.2, 0.9, 0.4]),
    "the student excludes": ([2.0, 0.5, -1.0, 0.3, 0.7], [0.1, 1.5, OFF, 0.9, OFF]),
    "each excludes another": ([2.0, 0.5, OFF, 0.3, 0.7], [0.1, 1.5, 0.2, 0.9, OFF]),
    "the teacher is sure": ([0.0, OFF, OFF, OFF, OFF], [0.7, 0.2, 0.1, 0.0, -1.0]),
    "large finite masks": ([2.0, 0.5, -1e9, 0.3, -1e9], [0.1, 1.5, -1e9, 0.9, -1e9]),
}


def xlog(p: float, ratio_above: float, ratio_below: float) -> float:
    """`p log(a / b)`, 0 where p is."""
    if p == 0:
        return 0.0
    return math.inf if ratio_below == 0 else p * math.log(ratio_above / ratio_below)


def probabilities(logits: list[float]) -> list[float]:
    top = max(logits)
    powers = [math.exp(z - top) for z in logits]
    return [power / sum(powers) for power in powers]


def expected(name: str, teacher: list[float], student: list[float]) -> float:
    """One row's loss, by the definitions, token by token."""
    p, q = probabilities(teacher), probabilities(student)
    pairs = list(zip(p, q, strict=True))
    forward, reverse = sum(xlog(a, a, b) for a, b in pairs), sum(xlog(b, b, a) for a, b in pairs)

    def mixed(beta: float) -> tuple[float, float]:
        m = [beta * a + (1 - beta) * b for a, b in pairs]
        return sum(xlog(a, a, c) for a, c in zip(p, m, strict=True)), sum(
            xlog(b, b, c) for b, c in zip(q, m, strict=True)
        )

    if name == "cross_entropy":
        return math.inf if q[0] == 0 else -math.log(q[0])
    if name == "adaptive":
        gaps = [abs(a - b) for a, b in pairs]
        head, mass = set(), 0.0
        for index in sorted(range(len(p)), key=lambda index: -p[index]):
            if head and mass + p[index] > 0.5:
                break
            head.add(index)
            mass += p[index]
        share = sum(gaps[index] for index in head) / sum(gaps) if sum(gaps) else 0.5
        return (share * forward if share else 0.0) + ((1 - share) * reverse if share < 1 else 0.0)
    return {
        "forward_kl": forward,
        "alpha beta (1, 0)": forward,
        "reverse_kl": reverse,
        "jsd": 0.5 * sum(mixed(0.5)),
        "jsd 0.1": 0.1 * mixed(0.1)[0] + 0.9 * mixed(0.1)[1],
        "skew forward": mixed(0.1)[0],
        "skew reverse": mixed(0.9)[1],
        "alpha beta": sum(2 * (math.sqrt(a) - math.sqrt(b)) ** 2 for a, b in pairs),
        "tv": sum(abs(a - b) for a, b in pairs) / 2,
        "universal": sum(abs(a - b) for a, b in zip(sorted(p), sorted(q), strict=True)),
    }[name]


def one_row(logits: list[float], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Head]:
    """Hidden states and a head whose product is these logits: what excludes a token is the head's bias."""
    weight = torch.tensor([[0.0 if math.isinf(z) else z] for z in logits], dtype=dtype)
    bias = torch.tensor([OFF if math.isinf(z) else 0.0 for z in logits], dtype=dtype)
    return torch.ones(1, 1, dtype=dtype, requires_grad=True), Head(weight.requires_grad_(), bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", TERMS)
def test_excluded_tokens_count_nothing_or_are_honest_infinities(name, case, dtype):
    """In training, in evaluation and as a plain function; the gradient is finite where the loss is."""
    teacher_logits, student_logits = CASES[case]
    wanted = expected(name, teacher_logits, student_logits)
    term, labels = TERMS[name], torch.tensor([0])
    hidden, head = one_row(student_logits, dtype)
    teacher_hidden, teacher_head = one_row(teacher_logits, dtype)
    teacher = TeacherOutput(teacher_hidden.detach(), Head(teacher_head.weight.detach(), teacher_head.bias))
    trained = token_pass(hidden, head, labels, [term], {term.name: 1.0}, teacher)
    evaluated = token_values(hidden, head, labels, [term], teacher)[term.name]
    tolerance = {"rel": 1e-5, "abs": 1e-6} if dtype == torch.float32 else {"rel": 1e-9, "abs": 1e-11}
    assert float(trained.losses[term.name]) == pytest.approx(wanted, **tolerance)
    assert float(evaluated) == pytest.approx(wanted, **tolerance)
    if math.isfinite(wanted):
        for gradient in torch.autograd.grad(trained.loss, [hidden, head.weight]):
            assert gradient.isfinite().all()


def test_the_issues_example():
    log_p = torch.tensor([[0.0, OFF, OFF]])
    log_q = torch.tensor([[0.7, 0.2, 0.1]]).log()
    assert float(functional.forward_kl(log_q, log_p)) == pytest.approx(0.35667, abs=1e-5)
    assert float(functional.jensen_shannon(log_q, log_p, 0.5)) == pytest.approx(0.11728, abs=1e-5)
    assert float(functional.skew_forward_kl(log_q, log_p, 0.1)) == pytest.approx(0.31471, abs=1e-5)
    assert float(functional.reverse_kl(log_q, log_p)) == math.inf


@pytest.mark.parametrize("name", [name for name in TERMS if name != "cross_entropy"])
def test_gradients_beside_excluded_tokens_are_autograds_without_them(name):
    """Tokens that both exclude might as well not be there."""
    teacher_logits, student_logits = [2.0, 0.5, -1.0, OFF, 0.3, OFF], [0.1, 1.5, -0.2, OFF, 0.9, OFF]
    kept = [index for index, z in enumerate(teacher_logits) if math.isfinite(z)]
    term, gradients = TERMS[name], []
    for indices in (range(6), kept):
        hidden, head = one_row([student_logits[index] for index in indices], torch.float64)
        teacher_hidden, teacher_head = one_row([teacher_logits[index] for index in indices], torch.float64)
        teacher = TeacherOutput(teacher_hidden.detach(), Head(teacher_head.weight.detach(), teacher_head.bias))
        loss = token_pass(hidden, head, torch.tensor([0]), [term], {term.name: 1.0}, teacher).loss
        gradients.append(torch.autograd.grad(loss, head.weight)[0][:, 0])
    assert torch.count_nonzero(gradients[0]) == torch.count_nonzero(gradients[1])
    torch.testing.assert_close(gradients[0][kept], gradients[1], rtol=1e-9, atol=1e-12)


# ---- large logits, large vocabularies ----


def test_log_normalizers_are_of_all_tokens_not_of_one_that_is_masked():
    hidden, head = one_row([0.0, 1.0, 2.0, 3.0, 4.0])
    masked = Head(head.weight, torch.tensor([-1e9, 0.0, 0.0, 0.0, 0.0]))
    found = token_pass(hidden, masked, torch.tensor([1]), [], {}, None, normalizers=True).log_normalizers_N
    assert float(found) == pytest.approx(math.log(sum(math.exp(z) for z in (1, 2, 3, 4))), abs=1e-6)


@pytest.mark.parametrize("offset", [0.0, 1e3, -1e3, 1e5])
def test_values_do_not_round_to_an_ulp_of_the_logits(offset):
    generator = torch.Generator().manual_seed(0)
    # Quarters: exact in fp32 beside the offset, so that all of the error is the softmax's.
    logits, other = (torch.randint(-40, 40, (64, 300), generator=generator).float() / 4 for _ in range(2))
    log_q, q, normalizers = log_probs_and_probs(logits + offset, 1.0)
    log_p, p, _ = log_probs_and_probs(other + offset, 1.0)
    exact_q, exact_p = (values.double().log_softmax(-1) for values in (logits, other))
    assert (log_q.double() - exact_q).abs().max() < 4e-6
    exact = (exact_p.exp() * (exact_p - exact_q)).sum(-1)
    losses, _ = functional.forward_kl_with_gradient(log_q, log_p, q, p)
    assert (losses.double() - exact).abs().max() < 4e-6
    assert normalizers == pytest.approx(logits.double().logsumexp(-1) + offset, rel=1e-6)


@pytest.mark.parametrize("name", ["skew forward", "jsd", "forward_kl", "reverse_kl", "skew reverse"])
def test_gradients_of_a_large_vocabulary(name):
    """q sums to 1 to 2e-5 there: taken for 1, the gradients of skewed divergences are off by 1 to 2% of their maximum."""
    generator = torch.Generator().manual_seed(0)
    term, gradients = TERMS[name], []
    logits = [torch.randn(2, 151_936, generator=generator) * 2 for _ in range(2)]
    for dtype in (torch.float32, torch.float64):
        # Hidden states are unit vectors: the logits are the columns of the heads.
        student = logits[0].to(dtype).T.contiguous().requires_grad_()
        teacher = TeacherOutput(torch.eye(2, dtype=dtype), Head(logits[1].to(dtype).T.contiguous()))
        loss = token_pass(
            torch.eye(2, dtype=dtype), Head(student), torch.tensor([0, 1]), [term], {term.name: 1.0}, teacher
        ).loss
        gradients.append(torch.autograd.grad(loss, student)[0].double())
    single, double = gradients
    assert (single - double).abs().max() < 1e-3 * double.abs().max()
    assert single.sum(0).abs().max() < 1e-6


# ---- heads of two widths ----


def two_heads(student_vocab: int, teacher_vocab: int) -> tuple[Tensor, Head, Tensor, TeacherOutput]:
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    labels = torch.randint(0, student_vocab, (9,), generator=generator)
    teacher = TeacherOutput(draw(9, 4), Head(draw(teacher_vocab, 4)))
    return draw(9, 6).requires_grad_(), Head(draw(student_vocab, 6).requires_grad_()), labels, teacher


@pytest.mark.parametrize("kl_weight", [0.0, 1e-9, 1.0])
def test_cross_entropy_does_not_change_its_vocabulary_with_the_kls_weight(kl_weight):
    hidden, head, labels, teacher = two_heads(8, 5)
    terms = [CrossEntropy(), ForwardKL()]
    found = token_pass(hidden, head, labels, terms, {"cross_entropy": 1.0, "forward_kl": kl_weight}, teacher)
    logits = hidden @ head.weight.T
    own = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    log_q, log_p = logits[:, :5].log_softmax(-1), teacher.logits()[:, :5].log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    torch.testing.assert_close(found.losses["cross_entropy"], own.detach())
    values = token_values(hidden, head, labels, terms, teacher)
    torch.testing.assert_close(values["cross_entropy"], own.detach())
    torch.testing.assert_close(values["forward_kl"], kl.detach())
    leaves = [hidden, head.weight]
    for gradient, wanted in zip(
        torch.autograd.grad(found.loss, leaves), torch.autograd.grad((own + kl_weight * kl).sum(), leaves), strict=True
    ):
        torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize("temperatures", [(1.0, 1.0), (1.0, 2.0), (2.0, 1.0)])
def test_both_vocabularies_at_two_temperatures_with_log_normalizers(temperatures):
    hidden, head, labels, teacher = two_heads(8, 5)
    terms = [CrossEntropy(temperatures[0]), ReverseKL(temperatures[1])]
    found = token_pass(
        hidden, head, labels, terms, {"cross_entropy": 0.3, "reverse_kl": 0.7}, teacher, 4, normalizers=True
    )
    logits = hidden @ head.weight.T
    own = torch.nn.functional.cross_entropy(logits / temperatures[0], labels, reduction="none") * temperatures[0] ** 2
    log_q, log_p = ((z[:, :5] / temperatures[1]).log_softmax(-1) for z in (logits, teacher.logits()))
    kl = (log_q.exp() * (log_q - log_p)).sum(-1) * temperatures[1] ** 2
    leaves = [hidden, head.weight]
    wanted = torch.autograd.grad((0.3 * own + 0.7 * kl).sum(), leaves)
    for gradient, other in zip(torch.autograd.grad(found.loss, leaves), wanted, strict=True):
        torch.testing.assert_close(gradient, other)
    torch.testing.assert_close(found.log_normalizers_N, logits[:, :5].logsumexp(-1).detach())


@pytest.mark.parametrize(
    ("student", "teacher"), itertools.permutations([torch.float32, torch.float64, torch.bfloat16], 2)
)
def test_any_pair_of_dtypes(student, teacher):
    hidden, head, labels, output = two_heads(8, 8)
    terms = [UniversalLogit(), ReverseKL(), JensenShannon()]
    own_hidden, own_head = hidden.detach().to(student).requires_grad_(), Head(head.weight.detach().to(student))
    other = TeacherOutput(output.hidden_NH.to(teacher), Head(output.head.weight.to(teacher)))
    found = token_pass(own_hidden, own_head, labels, terms, {term.name: 1.0 for term in terms}, other)
    exact = token_values(hidden, head, labels, terms, output)
    for name, losses in found.losses.items():
        assert losses.dtype == torch.promote_types(student, torch.float32)
        torch.testing.assert_close(losses.double(), exact[name], rtol=0.1, atol=0.1)
    found.loss.backward()
    assert own_hidden.grad is not None


def test_a_head_in_fp16_and_a_label_beyond_the_head_are_refused_by_name():
    hidden, head, labels, teacher = two_heads(8, 5)
    with pytest.raises(ValueError, match="head is in fp16"):
        token_pass(hidden.half(), Head(head.weight.half()), labels, [CrossEntropy()], {"cross_entropy": 1.0})
    labels[3] = 11
    with pytest.raises(ValueError, match="supervised row 3 has the label 11, and the student's head has 8 tokens"):
        token_pass(hidden, head, labels, [CrossEntropy()], {"cross_entropy": 1.0}, teacher)


def test_the_releases_reverse_kl_masks_infinite_logits():
    found = floored_reverse_kl(torch.tensor([[1.0, 0.0, 0.5]]), torch.tensor([[0.5, 1.0, OFF]]))
    assert float(found) == pytest.approx(-0.0759, abs=1e-4)
