"""Divergences and closed-form gradients against plain float64 formulas and autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gakd.losses import (
    AdaptiveKL,
    AlphaBeta,
    CrossEntropy,
    Divergence,
    ForwardKL,
    JensenShannon,
    ReverseKL,
    SkewForwardKL,
    SkewReverseKL,
    TotalVariation,
    UniversalLogit,
    adaptive,
    functional,
)
from gakd.losses.kernel import lazy_log_probs
from gakd.losses.term import TokenChunk
from gakd.losses.token_loss import TokenLoss


def alpha_beta_summand(q: Tensor, p: Tensor, a: float, b: float) -> Tensor:
    """Of Cichocki, Cruces and Amari's definition, with its limits."""
    if a == 0 and b == 0:
        return (q.log() - p.log()) ** 2 / 2
    if a == 0:
        return (q**b * (q**b / p**b).log() - q**b + p**b) / b**2
    if b == 0:
        return (p**a * (p**a / q**a).log() - p**a + q**a) / a**2
    if a + b == 0:
        return ((q**a / p**a).log() + (p / q) ** a - 1) / a**2
    return -(p**a * q**b - a / (a + b) * p ** (a + b) - b / (a + b) * q ** (a + b)) / (a * b)


def summand(term: TokenLoss, q: Tensor, p: Tensor) -> Tensor:
    """The textbook formula of one token of the vocabulary."""
    if isinstance(term, JensenShannon) and term.beta not in (0, 1):
        m = term.beta * p + (1 - term.beta) * q
        return term.beta * p * (p / m).log() + (1 - term.beta) * q * (q / m).log()
    if isinstance(term, SkewForwardKL):
        return p * (p / (term.alpha * p + (1 - term.alpha) * q)).log()
    if isinstance(term, SkewReverseKL):
        of_student = q.detach() if term.detach_mixture else q
        return q * (q / ((1 - term.alpha) * p + term.alpha * of_student)).log()
    if isinstance(term, AlphaBeta):
        return alpha_beta_summand(q, p, term.alpha, term.beta)
    if isinstance(term, TotalVariation):
        return (q - p).abs() / 2
    is_reverse = isinstance(term, ReverseKL) or (isinstance(term, JensenShannon) and term.beta == 1)
    return q * (q / p).log() if is_reverse else p * (p / q).log()


def sorted_head(p: Tensor, mu: float) -> list[int]:
    """The teacher's head as its authors find it: by a sort."""
    order = p.argsort(descending=True).tolist()
    if mu == 1:  # where rounding would decide
        return order
    total, head = 0.0, order[:1]
    for token in order:
        total += p[token].item()
        if total <= mu and token not in head:
            head.append(token)
    return head


def sorted_distance(q: Tensor, p: Tensor) -> Tensor:
    """Rank by rank; where one vocabulary ends, the other's probabilities remain."""
    q_ranks, p_ranks = (sorted(row.unbind(), key=Tensor.item, reverse=True) for row in (q, p))
    ranks = range(max(len(q), len(p)))
    nothing = q.new_zeros(())
    at = [[part[rank] if rank < len(part) else nothing for rank in ranks] for part in (q_ranks, p_ranks)]
    return torch.stack([(own - other).abs() for own, other in zip(*at, strict=True)]).sum()


def row_loss(term: TokenLoss, q: Tensor, p: Tensor, label: int) -> Tensor:
    if isinstance(term, CrossEntropy):
        return -q[label].log()
    if isinstance(term, AdaptiveKL):
        head = sorted_head(p, term.mu)
        tail = [token for token in range(len(p)) if token not in head]
        gap = (p - q.detach()).abs()
        share = gap[head].sum() / (gap[head].sum() + gap[tail].sum())
        return share * row_loss(ForwardKL(), q, p, label) + (1 - share) * row_loss(ReverseKL(), q, p, label)
    if isinstance(term, UniversalLogit):
        return sorted_distance(q, p)
    return torch.stack([summand(term, q_v, p_v) for q_v, p_v in zip(q, p, strict=True)]).sum()


def direct(term: TokenLoss, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """Each loss as its textbook formula on probabilities, row by row, token by token."""
    rows = zip(student_logits.softmax(-1), teacher_logits.softmax(-1), labels.tolist(), strict=True)
    return torch.stack([row_loss(term, q, p, label) for q, p, label in rows])


TERMS = [
    CrossEntropy(),
    ForwardKL(),
    ReverseKL(),
    *(JensenShannon(beta) for beta in (0.5, 0.1, 0.9, 0.0, 1.0)),
    *(SkewForwardKL(alpha) for alpha in (0.1, 0.7, 0.0)),
    *(SkewReverseKL(alpha) for alpha in (0.1, 0.7, 0.0)),
    SkewReverseKL(0.1, detach_mixture=True),
    *(AdaptiveKL(mu) for mu in (0.5, 0.9, 0.0, 1.0)),
    *(AlphaBeta(a, b) for a, b in ((0.5, 0.5), (0.2, 0.7), (1.0, 0.0), (0.0, 1.0), (0.3, 0.0), (0.0, 0.3), (0.0, 0.0))),
    *(AlphaBeta(a, b) for a, b in ((0.4, -0.4), (-0.4, 0.4), (1.2, -0.3))),
    TotalVariation(),
    UniversalLogit(),
]


def describe(term: TokenLoss) -> str:
    return "-".join([term.name, *(f"{value}" for key, value in vars(term).items() if not key.startswith("temp"))])


every_term = pytest.mark.parametrize("term", TERMS, ids=describe)
every_divergence = pytest.mark.parametrize("term", TERMS[1:], ids=describe)


def chunk_of(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor | None = None) -> TokenChunk:
    labels = torch.zeros(len(student_logits), dtype=torch.long) if labels is None else labels
    return TokenChunk(student_logits.log_softmax(-1), teacher_logits.log_softmax(-1), labels)


def logit_gradient(term: TokenLoss, chunk: TokenChunk, coefficient: float = 1.0) -> tuple[Tensor, Tensor]:
    """Losses and their gradient with respect to the logits, as the engine forms it."""
    losses, gradient = term.accumulate_(chunk, coefficient, None)
    return losses, functional.logit_gradient(gradient, chunk.student_probs_NV)


@every_term
def test_value_and_gradient_equal_float64_autograd(term):
    torch.manual_seed(0)
    student_logits = (3 * torch.randn(5, 17, dtype=torch.float64)).requires_grad_()
    teacher_logits = 3 * torch.randn(5, 17, dtype=torch.float64)
    labels = torch.randint(0, 17, (5,))
    expected = direct(term, student_logits, teacher_logits, labels)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), student_logits)
    chunk = chunk_of(student_logits.detach(), teacher_logits, labels)
    losses, gradient = logit_gradient(term, chunk, 0.25)
    torch.testing.assert_close(losses, expected.detach(), rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(gradient, 0.25 * expected_gradient, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(term.chunk_losses(chunk), losses, rtol=1e-11, atol=1e-12)


@every_divergence
def test_values_alone_are_differentiable_and_have_the_same_gradient(term):
    if isinstance(term, SkewReverseKL) and term.detach_mixture:
        pytest.skip("what is detached shows in the gradient alone")
    torch.manual_seed(4)
    student_logits = (3 * torch.randn(5, 17, dtype=torch.float64)).requires_grad_()
    teacher_logits = 3 * torch.randn(5, 17, dtype=torch.float64)
    losses = term.losses(student_logits.log_softmax(-1), teacher_logits.log_softmax(-1))
    (expected_gradient,) = torch.autograd.grad(losses.sum(), student_logits)
    _, gradient = logit_gradient(term, chunk_of(student_logits.detach(), teacher_logits))
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-12)


@every_term
def test_a_term_adds_to_the_total_and_leaves_its_chunk_unwritten(term):
    torch.manual_seed(5)
    student_logits, teacher_logits, before = torch.randn(3, 4, 9, dtype=torch.float64)
    chunk = chunk_of(student_logits, teacher_logits, torch.tensor([0, 3, 8, 3]))
    inputs = [chunk.student_log_probs_NV, chunk.teacher_log_probs_NV, chunk.student_probs_NV, chunk.teacher_probs_NV]
    copies = [tensor.clone() for tensor in inputs]
    losses, alone = term.accumulate_(chunk, 0.7, None)
    again, total = term.accumulate_(chunk, 0.7, before.clone())
    assert torch.equal(losses, again)
    assert not losses.requires_grad
    torch.testing.assert_close(total, before + alone)
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(inputs, copies, strict=True))


@every_divergence
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_divergence_and_gradient_vanish_exactly_where_the_models_agree(term, dtype):
    torch.manual_seed(1)
    log_probs = (4 * torch.randn(8, 33, dtype=dtype)).log_softmax(-1)
    chunk = TokenChunk(log_probs, log_probs.clone(), torch.zeros(8, dtype=torch.long))
    losses, gradient = logit_gradient(term, chunk)
    assert torch.count_nonzero(losses) == 0
    assert torch.count_nonzero(gradient) == 0
    assert torch.count_nonzero(term.chunk_losses(chunk)) == 0


@every_divergence
def test_divergences_are_finite_and_not_negative_on_near_certain_rows(term):
    student = torch.tensor([[200.0, 0.0, -200.0], [0.0, 300.0, 0.0], [0.0, 0.0, -300.0]])
    teacher = torch.tensor([[-200.0, 0.0, 200.0], [0.0, 0.0, 300.0], [-500.0, 0.0, -300.0]])
    chunk = chunk_of(student, teacher)
    losses, gradient = logit_gradient(term, chunk)
    assert torch.isfinite(losses).all()
    assert torch.isfinite(gradient).all()
    alike = torch.tensor([True, True, False]) & isinstance(term, UniversalLogit)  # up to the order of the tokens
    assert torch.equal(losses > 0, ~alike)
    torch.testing.assert_close(term.chunk_losses(chunk), losses)
    if getattr(term, "beta", 0) >= 0 and getattr(term, "alpha", 0) >= 0:  # negative exponents are cut there
        exact = chunk_of(student.double(), teacher.double())
        expected, expected_gradient = logit_gradient(term, exact)
        torch.testing.assert_close(losses, expected.float(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(gradient, expected_gradient.float(), rtol=1e-5, atol=1e-5)


@every_divergence
def test_fp32_is_close_to_fp64_over_a_vocabulary(term):
    torch.manual_seed(6)
    student, teacher = 5 * torch.randn(2, 4, 2000)
    losses, gradient = logit_gradient(term, chunk_of(student, teacher))
    expected, expected_gradient = logit_gradient(term, chunk_of(student.double(), teacher.double()))
    torch.testing.assert_close(losses, expected.float(), rtol=2e-5, atol=1e-6)
    size = max(1.0, expected_gradient.abs().amax().item())
    # Probabilities sum to 1 within 1e-6, and log ratios, some 20 here, multiply that.
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1e-5, atol=2e-5 * size)


@every_term
def test_terms_compile_in_one_graph(term):
    # The eager backend traces as every other does.
    torch._dynamo.reset()  # each term counts as a recompilation of the one function below, and those are limited
    chunk = chunk_of(*torch.randn(2, 4, 9), torch.tensor([0, 3, 8, 3]))

    @torch.compile(backend="eager", fullgraph=True)
    def traced(log_q: Tensor, log_p: Tensor, labels: Tensor, coefficient: float) -> tuple[Tensor, Tensor]:
        return term.accumulate_(TokenChunk(log_q, log_p, labels, log_q.exp(), log_p.exp()), coefficient, None)

    for coefficient in (0.5, 0.25, 0.125):
        found = traced(chunk.student_log_probs_NV, chunk.teacher_log_probs_NV, chunk.labels_N, coefficient)
        torch.testing.assert_close(found, term.accumulate_(chunk, coefficient, None))


@pytest.mark.parametrize("build", [SkewForwardKL, SkewReverseKL, lambda alpha: SkewReverseKL(alpha, True)])
def test_rows_may_have_a_skew_of_their_own(build):
    torch.manual_seed(3)
    log_q, log_p = (3 * torch.randn(2, 5, 9, dtype=torch.float64)).log_softmax(-1)
    labels_N, alphas_N = torch.zeros(5, dtype=torch.long), torch.tensor([0.01, 0.1, 0.3, 0.7, 0.1], dtype=torch.float64)
    chunk = TokenChunk(log_q, log_p, labels_N, row_values={"skew_alpha": alphas_N})
    term = build(0.5)
    losses_N, gradient_NV = term.accumulate_(chunk, 0.3, None)
    torch.testing.assert_close(term.chunk_losses(chunk), losses_N)
    for row, alpha in enumerate(alphas_N.tolist()):
        alone = TokenChunk(log_q[row : row + 1], log_p[row : row + 1], labels_N[:1])
        expected = build(alpha).accumulate_(alone, 0.3, None)
        torch.testing.assert_close((losses_N[row : row + 1], gradient_NV[row : row + 1]), expected)


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


def test_skew_divergences_tend_to_the_kl_divergences_and_to_zero():
    torch.manual_seed(7)
    log_q, log_p = torch.randn(2, 16, 40, dtype=torch.float64).log_softmax(-1)
    for skew, plain in (
        (functional.skew_forward_kl, functional.forward_kl),
        (functional.skew_reverse_kl, functional.reverse_kl),
    ):
        torch.testing.assert_close(skew(log_q, log_p, 1e-9), plain(log_q, log_p))
        assert (skew(log_q, log_p, 0.1) < plain(log_q, log_p)).all()
        assert (skew(log_q, log_p, 1 - 1e-6) < 1e-9).all()


def test_skew_divergences_are_those_of_distillm_up_to_the_teachers_entropy():
    """Its code, in our words: `-sum p log(lam p + (1 - lam) q)`, `sum q (log q - log((1 - lam) p + lam q))`."""
    torch.manual_seed(8)
    log_q, log_p = (3 * torch.randn(2, 6, 20, dtype=torch.float64)).log_softmax(-1)
    q, p = log_q.exp(), log_p.exp()
    entropy = -(p * log_p).sum(-1)
    forward = -(p * (0.1 * p + 0.9 * q).log()).sum(-1)
    torch.testing.assert_close(functional.skew_forward_kl(log_q, log_p, 0.1) + entropy, forward)
    reverse = (q * (log_q - (0.9 * p + 0.1 * q).log())).sum(-1)
    torch.testing.assert_close(functional.skew_reverse_kl(log_q, log_p, 0.1), reverse)


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 0.0), (0.0, 1.0), (0.5, 0.0), (0.0, 0.5), (0.5, -0.5), (0.0, 0.0)])
def test_alpha_beta_is_continuous_at_its_limits(alpha, beta):
    torch.manual_seed(9)
    chunk = chunk_of(*torch.randn(2, 6, 20, dtype=torch.float64))
    losses, gradient = logit_gradient(AlphaBeta(alpha, beta), chunk)
    near = logit_gradient(AlphaBeta(alpha + 1e-6, beta + 2e-6), chunk)
    torch.testing.assert_close((losses, gradient), near, rtol=1e-4, atol=1e-4)


def test_alpha_beta_contains_the_divergences_it_is_said_to():
    torch.manual_seed(10)
    log_q, log_p = torch.randn(2, 6, 20, dtype=torch.float64).log_softmax(-1)
    torch.testing.assert_close(functional.alpha_beta(log_q, log_p, 1, 0), functional.forward_kl(log_q, log_p))
    torch.testing.assert_close(functional.alpha_beta(log_q, log_p, 0, 1), functional.reverse_kl(log_q, log_p))
    torch.testing.assert_close(functional.alpha_beta(log_q, log_p, 0.5, 0.5), 4 * Hellinger().losses(log_q, log_p))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mu", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_the_teachers_head_is_that_of_a_sort(mu, dtype):
    torch.manual_seed(11)
    for sharpness in (0.1, 1.0, 4.0, 30.0):
        p = (sharpness * torch.randn(6, 300, dtype=dtype)).softmax(-1)
        heads = adaptive.teacher_head(p, mu)
        for row, head in zip(p, heads, strict=True):
            assert sorted(sorted_head(row, mu)) == head.nonzero().flatten().tolist()


def head_by_sort(p: Tensor, mu: float) -> Tensor:
    """Ties together, the first always; summed in float64."""
    heads = []
    for row in p.double():
        threshold = row.max()
        for candidate in row.unique():
            if candidate > 0 and row[row >= candidate].sum() <= mu:
                threshold = candidate
                break  # the least that fits
        heads.append(row >= threshold)
    return torch.stack(heads)


@pytest.mark.parametrize("looking", [True, False], ids=["searched", "halved"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_ways_to_the_head_find_that_of_a_sort(looking, dtype, monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: not looking)
    generator = torch.Generator().manual_seed(3)
    ties = torch.randint(1, 5, (4, 700), generator=generator).to(dtype)  # hundreds of each value, more than are sorted
    peaked = torch.zeros(2, 700, dtype=dtype).index_fill_(1, torch.tensor([5, 9]), 0.5)
    sharp = (12 * torch.randn(4, 700, dtype=dtype, generator=generator)).softmax(-1)
    flat = (0.1 * torch.randn(4, 700, dtype=dtype, generator=generator)).softmax(-1)
    rows = [ties / ties.sum(-1, keepdim=True), peaked, sharp, flat, torch.full((1, 700), 1 / 700, dtype=dtype)]
    for mu in (0.0, 0.2001, 0.5003, 0.9002):
        for p in (*rows, torch.cat(rows), torch.ones(2, 1, dtype=dtype)):
            assert torch.equal(adaptive.teacher_head(p, mu), head_by_sort(p, mu))


def test_log_probabilities_on_request_are_the_same_numbers_one_or_all():
    logits = torch.randn(6, 40)
    logits[:, 3] = -torch.inf
    labels = torch.tensor([3, 1, 2, 39, 3, 0])
    expected = logits.double().log_softmax(-1).clamp(min=functional.LOWEST_LOG_PROB)
    for in_place in (False, True):
        own = logits.clone()
        lazy, probs, _ = lazy_log_probs(own, 1.0, in_place)
        before = lazy.of(labels)
        assert torch.equal(own, logits)  # one token's are not worth the logits
        torch.testing.assert_close(lazy.all().double(), expected, rtol=1e-6, atol=1e-6)
        assert torch.equal(before, lazy.all().gather(1, labels[:, None]).squeeze(1))
        assert torch.equal(lazy.of(labels), before)
        assert (lazy.all().data_ptr() == own.data_ptr()) is in_place
        torch.testing.assert_close(probs, logits.softmax(-1))


def test_tokens_of_equal_probability_are_in_or_out_of_the_head_together():
    p = torch.tensor([[0.3, 0.2, 0.2, 0.2, 0.1], [0.2, 0.2, 0.2, 0.2, 0.2], [0.4, 0.4, 0.1, 0.1, 0.0]])
    heads = adaptive.teacher_head(p, 0.75)
    assert heads.int().tolist() == [[1, 0, 0, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert adaptive.teacher_head(p, 0.5)[2].int().tolist() == [1, 1, 0, 0, 0]


def test_total_variation_is_at_most_one_and_flat_where_two_probabilities_agree():
    student, teacher = torch.tensor([[50.0, 0.0, -50.0]]), torch.tensor([[-50.0, 0.0, 50.0]])
    losses, _ = TotalVariation().losses_and_gradient(chunk_of(student, teacher))
    torch.testing.assert_close(losses, torch.ones(1))
    equal_first = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.5, 0.2, 0.3]])
    _, gradient = TotalVariation().losses_and_gradient(chunk_of(*(p.log() for p in equal_first)))
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 0.15, -0.1]]))


@pytest.mark.parametrize(("vocabulary", "teacher_vocabulary"), [(13, 29), (29, 13), (13, 13), (1, 5)])
def test_universal_logit_over_two_vocabularies_equals_float64_autograd_rank_by_rank(vocabulary, teacher_vocabulary):
    torch.manual_seed(12)
    student_logits = (3 * torch.randn(6, vocabulary, dtype=torch.float64)).requires_grad_()
    teacher_logits = 3 * torch.randn(6, teacher_vocabulary, dtype=torch.float64)
    rows = zip(student_logits.softmax(-1), teacher_logits.softmax(-1), strict=True)
    expected = torch.stack([sorted_distance(q, p) for q, p in rows])
    (expected_gradient,) = torch.autograd.grad(expected.sum(), student_logits, retain_graph=True)
    losses, gradient = logit_gradient(UniversalLogit(), chunk_of(student_logits.detach(), teacher_logits), 0.5)
    torch.testing.assert_close(losses, expected.detach(), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(gradient, 0.5 * expected_gradient, rtol=1e-11, atol=1e-13)
    value = functional.universal_logit(student_logits.log_softmax(-1), teacher_logits.log_softmax(-1))
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value.sum(), student_logits)[0], expected_gradient)


def test_universal_logit_knows_no_order_of_either_vocabulary_and_no_tokens_without_probability():
    torch.manual_seed(13)
    student, teacher = torch.randn(5, 17, dtype=torch.float64), torch.randn(5, 23, dtype=torch.float64)
    losses, gradient = logit_gradient(UniversalLogit(), chunk_of(student, teacher))
    order, teacher_order = torch.randperm(17), torch.randperm(23)
    again, permuted = logit_gradient(UniversalLogit(), chunk_of(student[:, order], teacher[:, teacher_order]))
    torch.testing.assert_close(again, losses)
    torch.testing.assert_close(permuted, gradient[:, order])
    unused = torch.full((5, 9), -1e4, dtype=torch.float64)
    for chunk in (
        chunk_of(student, torch.cat([teacher, unused], 1)),
        chunk_of(torch.cat([student, unused], 1), torch.cat([unused, teacher, unused], 1)),
    ):
        wider, wide_gradient = logit_gradient(UniversalLogit(), chunk)
        torch.testing.assert_close(wider, losses)
        torch.testing.assert_close(wide_gradient[:, :17], gradient)
        assert torch.count_nonzero(wide_gradient[:, 17:]) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_universal_logit_is_exactly_zero_where_one_distribution_is_the_other_in_another_order(dtype):
    torch.manual_seed(14)
    log_probs = (4 * torch.randn(8, 33, dtype=dtype)).log_softmax(-1)
    chunk = TokenChunk(log_probs, log_probs[:, torch.randperm(33)], torch.zeros(8, dtype=torch.long))
    losses, gradient = logit_gradient(UniversalLogit(), chunk)
    for values in (losses, gradient, UniversalLogit().chunk_losses(chunk)):
        assert torch.count_nonzero(values) == 0


def test_universal_logit_is_at_most_twice_the_total_variation_of_any_matching_of_tokens():
    torch.manual_seed(15)
    log_q, log_p = (3 * torch.randn(2, 40, 25, dtype=torch.float64)).log_softmax(-1)
    losses = functional.universal_logit(log_q, log_p)
    for _ in range(5):
        matched = log_p[:, torch.randperm(25)]
        assert (losses <= 2 * functional.total_variation(log_q, matched) + 1e-12).all()
    ranked = log_p.sort(descending=True).values.gather(1, log_q.argsort(descending=True).argsort())
    torch.testing.assert_close(losses, 2 * functional.total_variation(log_q, ranked))


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
    losses, gradient = logit_gradient(Hellinger(), chunk_of(logits.detach(), teacher.log()))
    torch.testing.assert_close(losses, expected.detach())
    torch.testing.assert_close(gradient, expected_gradient)


def test_a_divergence_whose_gradient_is_one_number_can_be_accumulated():
    class Uniform(Divergence):
        name = "uniform"

        def losses(self, student_log_probs_NV: Tensor, teacher_log_probs_NV: Tensor) -> Tensor:
            return -student_log_probs_NV.sum(-1)

    chunk = chunk_of(*torch.randn(2, 4, 9))
    assert torch.equal(Uniform().accumulate_(chunk, 3.0, None)[1], torch.full((4, 9), -3.0))


def test_a_divergence_that_returns_the_wrong_shape_is_told_what_to_return():
    class Summed(Divergence):
        name = "summed"

        def losses(self, student_log_probs_NV: Tensor, teacher_log_probs_NV: Tensor) -> Tensor:
            return (student_log_probs_NV - teacher_log_probs_NV).sum()

    with pytest.raises(ValueError, match=r"summed.losses must return one loss a row, \(4,\), got \(\)"):
        Summed().losses_and_gradient(chunk_of(*torch.randn(2, 4, 9)))


@pytest.mark.parametrize(
    "build",
    [
        CrossEntropy, ForwardKL, ReverseKL, JensenShannon, SkewForwardKL, SkewReverseKL, AdaptiveKL, AlphaBeta,
        TotalVariation, UniversalLogit, Hellinger,
    ],
)  # fmt: skip
def test_every_term_has_a_temperature_and_its_scale(build):
    assert (build().temperature, build().scale) == (1.0, 1.0)
    assert (build(temperature=3.0).temperature, build(temperature=3.0).scale) == (3.0, 9.0)
    assert build(temperature=3.0, temperature_squared=False).scale == 1.0
    for temperature in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"above 0, got {temperature} for {build.__name__}"):
            build(temperature=temperature)


def test_a_divergence_with_its_own_constructor_needs_no_call_to_the_base():
    class Scaled(Hellinger):
        def __init__(self, factor: float) -> None:
            self.factor = factor

    assert (Scaled(2.0).temperature, Scaled(2.0).scale) == (1.0, 1.0)


@pytest.mark.parametrize(
    "build",
    [
        lambda: JensenShannon(-0.1),
        lambda: JensenShannon(1.1),
        lambda: SkewForwardKL(1.0),
        lambda: SkewReverseKL(-0.1),
        lambda: AdaptiveKL(1.1),
        lambda: AlphaBeta(float("nan"), 0.5),
        lambda: AlphaBeta(0.5, float("inf")),
    ],
)
def test_parameters_outside_their_range_are_refused(build):
    with pytest.raises(ValueError, match=r"lies in \[0, 1.*got|finite, got"):
        build()
