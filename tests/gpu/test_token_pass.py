"""The fused token pass on the card against float64: every closed form, every kernel, bf16 operands and fp32."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from gakd import Head, TeacherOutput
from gakd.losses import token_pass
from tests.gpu.check_part import is_dry
from tests.gpu.oracle import CASES, Case, Found, direction_lost, exact, rows_on
from tests.gpu.token_ways import kernels

KERNELS = kernels(torch.device("cpu" if is_dry() else "cuda"))
NUMBERS = ["bf16-mixed", "fp32"]


@pytest.fixture(scope="module")
def rows(device):
    return rows_on(device)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.term.name)
def case_and_exact(request, rows) -> tuple[Case, Found]:
    """The oracle of a term, once for all kernels and numbers; and a compiler that has not met others: it stops at eight."""
    torch._dynamo.reset()
    return request.param, exact(request.param, rows)


def fused(case: Case, rows, kernel, numbers) -> Found:
    mixed = numbers == "bf16-mixed" and rows.hidden_NH.device.type == "cuda"
    hidden_NH, weight_VH = (tensor.clone().requires_grad_() for tensor in (rows.hidden_NH, rows.weight_VH))
    teacher_VH = rows.teacher_weight_VH.bfloat16() if mixed else rows.teacher_weight_VH
    teacher, name = TeacherOutput(rows.teacher_hidden_NH, Head(teacher_VH)), case.term.name
    with torch.autocast("cuda", torch.bfloat16) if mixed else nullcontext():
        found = token_pass(
            hidden_NH,
            Head(weight_VH),
            rows.labels_N,
            [case.term],
            {name: 1 / len(rows.labels_N)},
            teacher,
            kernel=kernel,
        )
    assert found.loss.dtype == torch.float32
    found.loss.backward()
    return Found(found.loss.item(), hidden_NH.grad, weight_VH.grad)


@pytest.mark.filterwarnings("error:torch.compile failed", "error:.*the eager kernel takes over")
@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_loss_and_gradients_are_float64s(case_and_exact, rows, kernel, numbers):
    case, expected = case_and_exact
    found = fused(case, rows, kernel, numbers)
    nats, direction = (
        (case.nats, case.direction) if numbers == "bf16-mixed" else (2e-5, max(1e-6, 1e-2 * case.direction))
    )
    assert abs(found.loss - expected.loss) < nats
    assert direction_lost(found.hidden_gradient, expected.hidden_gradient) < direction
    assert direction_lost(found.weight_gradient, expected.weight_gradient) < direction
    assert found.weight_gradient.norm().item() == pytest.approx(expected.weight_gradient.norm().item(), rel=1e-2)
