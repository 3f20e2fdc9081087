"""Products of a head: what is rounded, what is not, and that the sums are fp32's."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cosine_similarity

from gakd import CrossEntropy, ForwardKL, Head, ReverseKL, TeacherOutput, products
from gakd.losses import chunks, fused, token_pass
from gakd.products import add_outer_, in_step_precision, project, project_back, projected

BF16 = torch.bfloat16


@pytest.mark.parametrize("dtype", [BF16, torch.float32, torch.float64])
@pytest.mark.parametrize("head_slice", [2048, 7])
def test_results_are_those_of_float64_on_the_operands_as_they_are(dtype, head_slice, monkeypatch):
    monkeypatch.setattr(products, "HEAD_SLICE", head_slice)
    torch.manual_seed(0)
    hidden_NH, weight_VH, gradient_NV = torch.randn(5, 12), torch.randn(33, 12).to(dtype), torch.randn(5, 33)
    wide = torch.promote_types(dtype, torch.float32)
    total_VH = torch.ones(33, 12, dtype=wide)
    add_outer_(total_VH, gradient_NV.to(wide), hidden_NH)
    found = project(hidden_NH, weight_VH), project_back(gradient_NV, weight_VH), total_VH
    expected = (
        hidden_NH.double() @ weight_VH.double().T, gradient_NV.double() @ weight_VH.double(),
        1 + gradient_NV.double().T @ hidden_NH.double(),
    )  # fmt: skip
    assert all(one.dtype == wide for one in found)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, atol=2e-6, rtol=2e-6)


def test_a_sum_of_bf16_gradients_loses_none_of_the_small_late_ones():
    total_VH, gradient_NV = torch.full((1, 1), 256.0), torch.full((1, 1), 0.25, dtype=BF16)
    for _ in range(4):
        add_outer_(total_VH, gradient_NV, torch.ones(1, 1))
    assert total_VH.item() == 257.0
    assert (torch.tensor(256.0, dtype=BF16) + torch.tensor(0.25, dtype=BF16)).item() == 256.0  # what it is kept from


def test_projected_has_the_gradients_of_autograd():
    torch.manual_seed(0)
    hidden_NH, weight_VH = (torch.randn(size, 6, dtype=torch.float64, requires_grad=True) for size in (4, 9))
    assert torch.autograd.gradcheck(projected, (hidden_NH, weight_VH))


def test_a_weight_is_rounded_under_cudas_autocast_to_bf16_alone():
    weight = torch.randn(3, 3)
    assert in_step_precision(weight) is weight
    with torch.autocast("cpu", dtype=BF16):
        assert in_step_precision(weight) is weight  # a CPU run is fp32 throughout


@pytest.fixture
def rounded(monkeypatch):
    """A CPU that does to operands what CUDA does under autocast: weights, hidden states and gradients rounded to bf16."""
    monkeypatch.setattr(fused, "in_step_precision", lambda weight: weight.to(BF16))
    monkeypatch.setattr(fused, "gradient_dtype", lambda weight: BF16)
    monkeypatch.setattr(chunks, "project", lambda hidden, weight, out: project(hidden.to(BF16), weight, out))


# Cross entropy reads one rounded logit a row, whose error is of either sign: it is a mean over these few rows.
@pytest.mark.parametrize(
    ("term", "nats"),
    [(CrossEntropy(), 2e-3), (ForwardKL(), 2e-4), (ReverseKL(), 2e-4)],
    ids=["ce", "forward", "reverse"],
)
def test_bf16_operands_at_a_real_vocabulary_move_a_divergence_by_2e_4_nats_and_not_its_direction(term, nats, rounded):
    torch.manual_seed(0)
    vocab_size, rows, width, labels_N = 151_936, 48, 96, torch.randint(151_936, (48,))
    # Logits of standard deviation 2.5; the teacher's go 0.9 with the student's.
    hidden_NH = torch.randn(rows, width)
    weight_VH = torch.randn(vocab_size, width) * 2.5 / width**0.5
    teacher_VH = 0.9 * weight_VH + (1 - 0.9**2) ** 0.5 * torch.randn(vocab_size, width) * 2.5 / width**0.5

    def run(dtype):
        leaves = [tensor.detach().to(dtype, copy=True).requires_grad_() for tensor in (hidden_NH, weight_VH)]
        teacher = TeacherOutput(hidden_NH.to(dtype), Head(teacher_VH.to(dtype)))
        found = token_pass(leaves[0], Head(leaves[1]), labels_N, [term], {term.name: 1 / rows}, teacher)
        found.loss.backward()
        return found.loss.item(), *(leaf.grad.double().flatten() for leaf in leaves)

    loss, hidden_gradient, weight_gradient = run(torch.float32)
    with pytest.MonkeyPatch.context() as exact:
        exact.setattr(fused, "in_step_precision", lambda weight: weight)
        exact.setattr(fused, "gradient_dtype", lambda weight: weight.dtype)
        exact.setattr(chunks, "project", project)
        oracle, exact_hidden, exact_weight = run(torch.float64)
    assert loss != oracle  # something was rounded
    assert abs(loss - oracle) < nats
    assert cosine_similarity(hidden_gradient, exact_hidden, dim=0) > 0.9999
    assert cosine_similarity(weight_gradient, exact_weight, dim=0) > 0.9999
