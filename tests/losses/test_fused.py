"""The fused engine against the direct, unfused computation in float64, and its invariances."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from gakd import (
    CrossEntropy,
    Divergence,
    ForwardKL,
    Head,
    JensenShannon,
    ReverseKL,
    TeacherOutput,
    UniversalLogit,
    products,
)
from gakd.losses import kernel, token_pass, token_values
from gakd.losses.chunks import default_chunk_rows

TERMS = [CrossEntropy(), ForwardKL(), ReverseKL(), JensenShannon(0.3)]
COEFFICIENTS = {"cross_entropy": 0.3, "forward_kl": 0.7, "reverse_kl": 0.2, "jensen_shannon": 1.1}


def inputs(dtype=torch.float64, rows=37, student_vocab=50, teacher_vocab=50, bias=False, scale=1.0, softcap=None):
    torch.manual_seed(0)
    hidden = torch.randn(rows, 12, dtype=dtype, requires_grad=True)
    weight = torch.randn(student_vocab, 12, dtype=dtype, requires_grad=True)
    offset = torch.randn(student_vocab, dtype=dtype, requires_grad=True) if bias else None
    teacher = TeacherOutput(torch.randn(rows, 20, dtype=dtype), Head(torch.randn(teacher_vocab, 20, dtype=dtype) / 2))
    labels = torch.randint(0, min(student_vocab, teacher_vocab), (rows,))
    return hidden, Head(weight, offset, scale, softcap), labels, teacher


def unfused(hidden: Tensor, head: Head, labels: Tensor, teacher: TeacherOutput) -> Tensor:
    """Everything at once with torch's own losses."""
    size = min(head.vocab_size, teacher.head.vocab_size)
    logits = hidden @ head.weight.T
    if head.bias is not None:
        logits = logits + head.bias
    logits = logits * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    log_q = logits[:, :size].log_softmax(-1)
    log_p = (teacher.hidden_NH @ teacher.head.weight.T)[:, :size].log_softmax(-1)
    log_m = (0.3 * log_p.exp() + 0.7 * log_q.exp()).log()
    return (
        0.3 * cross_entropy(logits, labels, reduction="sum")
        + 0.7 * kl_div(log_q, log_p, log_target=True, reduction="sum")
        + 0.2 * kl_div(log_p, log_q, log_target=True, reduction="sum")
        + 1.1 * 0.3 * kl_div(log_m, log_p, log_target=True, reduction="sum")
        + 1.1 * 0.7 * kl_div(log_m, log_q, log_target=True, reduction="sum")
    )


@pytest.mark.parametrize(
    "case",
    [
        {},
        {"bias": True},
        {"scale": 0.25},
        {"softcap": 5.0},
        {"bias": True, "scale": 1.7, "softcap": 3.0},
        {"student_vocab": 56},
        {"teacher_vocab": 61},
        {"student_vocab": 56, "bias": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("chunk_rows", [1, 7, 37, 512])
def test_loss_and_gradients_equal_the_unfused_computation(case, chunk_rows):
    hidden, head, labels, teacher = inputs(**case)
    leaves = [tensor for tensor in (hidden, head.weight, head.bias) if tensor is not None]
    expected = unfused(hidden, head, labels, teacher)
    expected_gradients = torch.autograd.grad(expected, leaves)
    loss, losses, *_ = token_pass(hidden, head, labels, TERMS, COEFFICIENTS, teacher, chunk_rows)
    gradients = torch.autograd.grad(loss, leaves)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-10)
    values = token_values(hidden, head, labels, TERMS, teacher, chunk_rows)
    for name, losses_N in losses.items():
        assert losses_N.shape == labels.shape
        torch.testing.assert_close(values[name], losses_N, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("head_slice", [2048, 16])
@pytest.mark.parametrize("bias", [False, True])
def test_fp32_is_close_to_float64_whichever_way_a_chunk_is_multiplied(head_slice, bias, monkeypatch):
    monkeypatch.setattr(products, "HEAD_SLICE", head_slice)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        hidden, head, labels, teacher = inputs(bias=bias, student_vocab=53)
        hidden, weight = hidden.detach().to(dtype).requires_grad_(), head.weight.detach().to(dtype).requires_grad_()
        offset = head.bias.detach().to(dtype) if bias else None
        teacher = TeacherOutput(teacher.hidden_NH.to(dtype), Head(teacher.head.weight.to(dtype)))
        loss, *_ = token_pass(hidden, Head(weight, offset), labels, TERMS, COEFFICIENTS, teacher, 16)
        gradients.append(torch.autograd.grad(loss, [hidden, weight]))
    for single, double in zip(*gradients, strict=True):
        torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-5)


def test_bf16_inputs_keep_fp32_losses_and_accumulate_the_head_gradient_in_fp32():
    hidden, head, labels, teacher = inputs(rows=256)
    hidden16, weight16 = hidden.detach().bfloat16().requires_grad_(), head.weight.detach().bfloat16().requires_grad_()
    teacher16 = TeacherOutput(teacher.hidden_NH.bfloat16(), Head(teacher.head.weight.bfloat16()))
    loss, losses, *_ = token_pass(hidden16, Head(weight16), labels, TERMS, COEFFICIENTS, teacher16, chunk_rows=4)
    assert all(values.dtype == torch.float32 for values in losses.values())
    (gradient,) = torch.autograd.grad(loss, weight16)
    assert gradient.dtype == torch.bfloat16
    exact_hidden, exact_weight = hidden16.detach().double(), weight16.detach().double().requires_grad_()
    exact_teacher = TeacherOutput(teacher16.hidden_NH.double(), Head(teacher16.head.weight.double()))
    (expected,) = torch.autograd.grad(unfused(exact_hidden, Head(exact_weight), labels, exact_teacher), exact_weight)
    # 64 chunks: a bf16 accumulator would be off by several percent.
    assert (gradient.double() - expected).norm() / expected.norm() < 0.01


def test_autocast_does_not_change_the_dtype_of_the_passs_products():
    hidden, head, labels, teacher = inputs(dtype=torch.float32)
    plain, *_ = token_pass(hidden, head, labels, TERMS, COEFFICIENTS, teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside, *_ = token_pass(hidden, head, labels, TERMS, COEFFICIENTS, teacher)
    assert torch.equal(plain, inside)


def test_upstream_gradient_scales_and_reordering_rows_changes_nothing():
    hidden, head, labels, teacher = inputs()
    loss, losses, *_ = token_pass(hidden, head, labels, TERMS, COEFFICIENTS, teacher, 8)
    once = torch.autograd.grad(loss, [hidden, head.weight], retain_graph=True)
    with pytest.raises(RuntimeError, match="handed over by its first backward"):
        loss.backward()
    again, *_ = token_pass(hidden, head, labels, TERMS, COEFFICIENTS, teacher, 8)
    thrice = torch.autograd.grad(3 * again, [hidden, head.weight])
    for single, triple in zip(once, thrice, strict=True):
        torch.testing.assert_close(triple, 3 * single)
    order = torch.randperm(len(labels))
    shuffled = TeacherOutput(teacher.hidden_NH[order], teacher.head)
    loss2, losses2, *_ = token_pass(hidden[order], head, labels[order], TERMS, COEFFICIENTS, shuffled, 8)
    torch.testing.assert_close(loss2, loss)
    torch.testing.assert_close(losses2["reverse_kl"], losses["reverse_kl"][order])
    torch.testing.assert_close(torch.autograd.grad(loss2, head.weight)[0], once[1])


def test_a_student_that_is_its_teacher_has_no_divergence_at_all_and_no_gradient():
    hidden, head, labels, _ = inputs(dtype=torch.float32, rows=200)
    teacher, terms = TeacherOutput(hidden.detach().clone(), Head(head.weight.detach().clone())), TERMS[1:]
    loss, losses, *_ = token_pass(hidden, head, labels, terms, COEFFICIENTS, teacher, chunk_rows=64)
    assert all(torch.count_nonzero(values) == 0 for values in losses.values())
    assert all(
        torch.count_nonzero(values) == 0 for values in token_values(hidden, head, labels, terms, teacher).values()
    )
    assert all(torch.count_nonzero(gradient) == 0 for gradient in torch.autograd.grad(loss, [hidden, head.weight]))


def test_a_frozen_head_gets_no_gradient_and_hidden_states_the_same_one():
    hidden, head, labels, teacher = inputs()
    (expected,) = torch.autograd.grad(token_pass(hidden, head, labels, TERMS, COEFFICIENTS, teacher)[0], hidden)
    frozen = Head(head.weight.detach())
    loss, *_ = token_pass(hidden, frozen, labels, TERMS, COEFFICIENTS, teacher)
    loss.backward()
    assert frozen.weight.grad is None
    assert torch.equal(hidden.grad, expected)


def test_terms_without_weight_are_not_computed_and_no_teacher_is_needed_without_them():
    hidden, head, labels, _ = inputs()
    loss, losses, *_ = token_pass(
        hidden, head, labels, TERMS, dict.fromkeys(COEFFICIENTS, 0.0) | {"cross_entropy": 1.0}
    )
    assert list(losses) == ["cross_entropy"]
    torch.testing.assert_close(loss, cross_entropy(hidden @ head.weight.T, labels, reduction="sum"))


def test_a_term_given_by_its_formula_runs_beside_closed_forms():
    class Squared(Divergence):
        name = "squared"

        def losses(self, student_log_probs_NV, teacher_log_probs_NV):
            return (student_log_probs_NV.exp() - teacher_log_probs_NV.exp()).square().sum(-1)

    hidden, head, labels, teacher = inputs()
    loss, *_ = token_pass(
        hidden, head, labels, [Squared(), ReverseKL()], {"squared": 2.0, "reverse_kl": 1.0}, teacher, 5
    )
    log_q = (hidden @ head.weight.T).log_softmax(-1)
    log_p = (teacher.hidden_NH @ teacher.head.weight.T).log_softmax(-1)
    expected = 2 * (log_q.exp() - log_p.exp()).square().sum() + kl_div(log_p, log_q, log_target=True, reduction="sum")
    leaves = [hidden, head.weight]
    for got, wanted in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("terms", [TERMS, [ForwardKL(temperature=2.0)], []], ids=["some", "hot", "none"])
def test_log_normalizers_come_with_the_pass_whatever_its_terms(terms):
    hidden, head, labels, teacher = inputs(teacher_vocab=61, scale=0.5)
    result = token_pass(hidden, head, labels, terms, COEFFICIENTS, teacher, 7, normalizers=True)
    expected = [head.logits(hidden), teacher.head.logits(teacher.hidden_NH, 50)]
    torch.testing.assert_close(result.log_normalizers_N, expected[0].logsumexp(-1).detach())
    torch.testing.assert_close(result.teacher_log_normalizers_N, expected[1].logsumexp(-1))
    assert not result.log_normalizers_N.requires_grad
    plain = token_pass(hidden, head, labels, terms, COEFFICIENTS, teacher, 7)
    assert (plain.log_normalizers_N, plain.teacher_log_normalizers_N) == (None, None)
    if terms:
        for with_them, without in zip(
            torch.autograd.grad(result.loss, [hidden, head.weight]),
            torch.autograd.grad(plain.loss, [hidden, head.weight]),
            strict=True,
        ):
            assert torch.equal(with_them, without)


UNIVERSAL = [CrossEntropy(), UniversalLogit(temperature=1.5)]
WEIGHTS = {"cross_entropy": 0.3, "universal_logit": 0.7}


def universal(hidden: Tensor, head: Head, labels: Tensor, teacher: TeacherOutput) -> dict[str, Tensor]:
    """Both losses on whole logits, the heads as wide as they are."""
    logits = head.logits(hidden)
    taught = torch.arange(len(hidden)) if teacher.rows is None else teacher.rows
    q = (logits[taught] / 1.5).softmax(-1).sort(descending=True).values
    p = (teacher.logits() / 1.5).softmax(-1).sort(descending=True).values
    width = max(q.shape[1], p.shape[1])
    q, p = (torch.cat([part, part.new_zeros(len(part), width - part.shape[1])], 1) for part in (q, p))
    distance = torch.zeros(len(hidden), dtype=q.dtype).index_put((taught,), 1.5**2 * (q - p).abs().sum(-1))
    return {"cross_entropy": cross_entropy(logits, labels, reduction="none"), "universal_logit": distance}


@pytest.mark.parametrize(
    "case",
    [
        {"teacher_vocab": 61},
        {"student_vocab": 61, "bias": True},
        {"teacher_vocab": 61, "softcap": 5.0, "scale": 0.7, "bias": True},
        {"teacher_vocab": 9},
    ],
    ids=str,
)
@pytest.mark.parametrize("rows", [None, [5, 0, 36, 20, 7, 8, 9, 30], []], ids=["all", "some", "none"])
@pytest.mark.parametrize("chunk_rows", [1, 7, 512])
def test_a_teacher_of_another_vocabulary_who_speaks_about_some_rows(case, rows, chunk_rows):
    hidden, head, labels, teacher = inputs(**case)
    labels = torch.randint(0, head.vocab_size, labels.shape)  # neither head is cut
    taught = slice(None) if rows is None else torch.tensor(rows, dtype=torch.long)
    spoken = None if rows is None else torch.tensor(rows, dtype=torch.long)
    teacher = TeacherOutput(teacher.hidden_NH[taught], teacher.head, spoken, shared_vocabulary=False)
    expected = universal(hidden, head, labels, teacher)
    total = sum(WEIGHTS[name] * values.sum() for name, values in expected.items())
    leaves = [tensor for tensor in (hidden, head.weight, head.bias) if tensor is not None]
    loss, losses, *_ = token_pass(hidden, head, labels, UNIVERSAL, WEIGHTS, teacher, chunk_rows)
    values = token_values(hidden, head, labels, UNIVERSAL, teacher, chunk_rows)
    torch.testing.assert_close(loss, total, rtol=1e-10, atol=1e-10)
    assert list(losses) == list(values) == list(expected)
    for name, wanted in expected.items():
        torch.testing.assert_close(losses[name], wanted.detach(), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(values[name], wanted.detach(), rtol=1e-10, atol=1e-12)
    if rows is not None:
        others = [row for row in range(len(labels)) if row not in rows]
        assert torch.count_nonzero(losses["universal_logit"][others]) == 0
    gradients, wanted = torch.autograd.grad(loss, leaves), torch.autograd.grad(total, leaves)
    for gradient, wanted_gradient in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, wanted_gradient, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("terms", [TERMS, TERMS[1:]], ids=["with labels", "divergences alone"])
def test_a_teacher_of_some_rows_is_that_of_these_rows_alone_and_labels_of_all(terms):
    hidden, head, labels, teacher = inputs(teacher_vocab=61)
    rows = torch.tensor([3, 30, 11, 12, 0])
    some = TeacherOutput(teacher.hidden_NH[rows], teacher.head, rows)
    loss, losses, *_ = token_pass(hidden, head, labels, terms, COEFFICIENTS, some, 7)
    alone = TeacherOutput(some.hidden_NH, teacher.head)
    parts = token_pass(hidden[rows], head, labels[rows], TERMS[1:], COEFFICIENTS, alone)
    own = token_pass(hidden, head, labels, [term for term in terms if not term.needs_teacher], COEFFICIENTS)
    expected = parts.loss + own.loss
    torch.testing.assert_close(loss, expected)
    for name, values in parts.losses.items():
        torch.testing.assert_close(losses[name][rows], values)
        assert torch.count_nonzero(losses[name]) == len(rows)
    leaves = [hidden, head.weight]
    for gradient, wanted in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(expected, leaves), strict=True):
        torch.testing.assert_close(gradient, wanted)


def test_a_bf16_head_and_a_teacher_of_another_vocabulary_are_close_to_float64():
    hidden, head, labels, teacher = inputs(rows=128, teacher_vocab=61)
    rows = torch.arange(0, 128, 3)
    hidden16, weight16 = hidden.detach().bfloat16().requires_grad_(), head.weight.detach().bfloat16().requires_grad_()
    head16 = Head(teacher.head.weight.bfloat16())
    teacher16 = TeacherOutput(teacher.hidden_NH[rows].bfloat16(), head16, rows, shared_vocabulary=False)
    loss, losses, *_ = token_pass(hidden16, Head(weight16), labels, UNIVERSAL, WEIGHTS, teacher16)
    exact_weight = weight16.detach().double().requires_grad_()
    exact_head = Head(head16.weight.double())
    exact = TeacherOutput(teacher16.hidden_NH.double(), exact_head, rows, shared_vocabulary=False)
    expected = universal(hidden16.detach().double(), Head(exact_weight), labels, exact)
    assert losses["universal_logit"].dtype == torch.float32
    torch.testing.assert_close(losses["universal_logit"].double(), expected["universal_logit"], rtol=0.05, atol=0.02)
    total = sum(WEIGHTS[name] * values.sum() for name, values in expected.items())
    (gradient,), (wanted,) = torch.autograd.grad(loss, weight16), torch.autograd.grad(total, exact_weight)
    # Logits rounded to bf16 exchange the ranks of like probabilities.
    assert (gradient.double() - wanted).norm() / wanted.norm() < 0.05


@pytest.mark.parametrize("block_bytes", [1, 2**30])
def test_blocks_of_two_vocabularies_change_nothing(block_bytes, monkeypatch):
    hidden, head, labels, teacher = inputs(dtype=torch.float32, teacher_vocab=61)
    teacher = TeacherOutput(teacher.hidden_NH, teacher.head, shared_vocabulary=False)
    expected = token_pass(hidden, head, labels, UNIVERSAL, WEIGHTS, teacher)
    monkeypatch.setattr(kernel, "BLOCK_BYTES", block_bytes)
    torch.testing.assert_close(token_pass(hidden, head, labels, UNIVERSAL, WEIGHTS, teacher).losses, expected.losses)


def test_a_teacher_that_no_term_needs_is_not_looked_at():
    hidden, head, labels, teacher = inputs()
    other = TeacherOutput(teacher.hidden_NH[:3], teacher.head, torch.tensor([1, 2, 3]), shared_vocabulary=False)
    coefficients = dict.fromkeys(COEFFICIENTS, 0.0) | {"cross_entropy": 1.0}
    loss, losses, *_ = token_pass(hidden, head, labels, TERMS, coefficients, other)
    assert list(losses) == ["cross_entropy"]
    assert torch.equal(loss, token_pass(hidden, head, labels, TERMS, coefficients).loss)


def test_another_vocabulary_is_refused_to_terms_that_compare_token_with_token():
    hidden, head, labels, teacher = inputs()
    other = TeacherOutput(teacher.hidden_NH, teacher.head, shared_vocabulary=False)
    mixed = [CrossEntropy(), UniversalLogit(), ForwardKL(), ReverseKL()]
    coefficients = {"cross_entropy": 1.0, "universal_logit": 1.0, "forward_kl": 1.0, "reverse_kl": 1.0}
    with pytest.raises(ValueError, match=r"^forward_kl, reverse_kl compare token with token.*use UniversalLogit"):
        token_pass(hidden, head, labels, mixed, coefficients, other)
    with pytest.raises(ValueError, match=r"^forward_kl, reverse_kl compare token with token"):
        token_values(hidden, head, labels, mixed, other)
    some = TeacherOutput(teacher.hidden_NH[:2], teacher.head, torch.tensor([4, 5]))
    for refused in (other, some):
        with pytest.raises(ValueError, match="another vocabulary or of some rows only; leave the adversary out"):
            token_pass(hidden, head, labels, UNIVERSAL, WEIGHTS, refused, normalizers=True)
    short = TeacherOutput(teacher.hidden_NH[:3], teacher.head, torch.tensor([4, 5]))
    with pytest.raises(ValueError, match="got 2 and 3; use one batch for both"):
        token_pass(hidden, head, labels, TERMS, COEFFICIENTS, short)


def test_errors_name_what_was_got_and_what_to_do():
    hidden, head, labels, teacher = inputs()
    with pytest.raises(ValueError, match="forward_kl, reverse_kl, jensen_shannon compare with a teacher"):
        token_pass(hidden, head, labels, TERMS, COEFFICIENTS)
    with pytest.raises(ValueError, match=r"37 rows and labels of shape \(36,\)"):
        token_pass(hidden, head, labels[1:], TERMS, COEFFICIENTS, teacher)
    with pytest.raises(ValueError, match="got 37 and 36; use one batch for both"):
        token_pass(hidden, head, labels, TERMS, COEFFICIENTS, TeacherOutput(teacher.hidden_NH[1:], teacher.head))


@pytest.mark.parametrize(
    ("vocab_size", "device", "rows"),
    [
        (151_936, "cpu", 128),
        (49_152, "cpu", 128),
        (32_768, "cpu", 256),
        (1_024, "cpu", 8192),
        (151_936, "cuda", 1024),
        (8_192, "cuda", 4096),
    ],
)
def test_default_chunk_fills_the_budget_with_at_least_128_rows_on_a_gpu_1024(vocab_size, device, rows):
    assert default_chunk_rows(16 * rows, vocab_size, torch.device(device)) == rows


def test_chunks_of_a_gpu_are_alike_and_near_1024_rows():
    found = {total: default_chunk_rows(total, 151_936, torch.device("cuda")) for total in (7, 1228, 1535, 1537, 9_999)}
    assert found == {7: 7, 1228: 1228, 1535: 1535, 1537: 769, 9_999: 1000}


def test_against_torchtunes_kd_losses():
    loss_module = pytest.importorskip("torchtune.modules.loss", reason="torchtune is an optional oracle")
    hidden, head, labels, teacher = inputs(dtype=torch.float32)
    student_logits, teacher_logits = hidden @ head.weight.T, teacher.logits()
    values = token_values(hidden, head, labels, [ForwardKL(), ReverseKL()], teacher)
    arguments = student_logits.unsqueeze(0), teacher_logits.unsqueeze(0), labels.unsqueeze(0)
    log_p = teacher_logits.log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1).mean()  # which torchtune's forward KL leaves out
    torch.testing.assert_close(
        values["forward_kl"].mean(), loss_module.ForwardKLLoss()(*arguments) - entropy, rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(
        values["reverse_kl"].mean(), loss_module.ReverseKLLoss()(*arguments), rtol=1e-4, atol=1e-4
    )
