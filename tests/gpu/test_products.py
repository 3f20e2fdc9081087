"""A head's products on the card: of bf16 operands fp32 results, of fp32 ones TF32 under mixed precision and nowhere else."""

from __future__ import annotations

import pytest
import torch

from gakd.products import add_outer_, in_step_precision, project, project_back
from gakd.run.launch import use_tensor_cores


def operands(device, dtype):
    generator = torch.Generator().manual_seed(0)
    rows, vocabulary, width = (8, 96, 24) if device.type == "cpu" else (256, 8192, 1024)
    sizes = ((rows, width), (vocabulary, width), (rows, vocabulary))
    return [torch.randn(*size, generator=generator).to(device, dtype) for size in sizes]


def apart(found, expected) -> float:
    return ((found.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_results_and_sums_are_fp32s_of_the_operands_as_they_are(device, dtype):
    hidden_NH, weight_VH, gradient_NV = operands(device, dtype)
    total_VH = torch.ones_like(weight_VH, dtype=torch.float32)
    add_outer_(total_VH, gradient_NV, hidden_NH)
    out_NV = torch.empty_like(gradient_NV, dtype=torch.float32)
    found = (
        project(hidden_NH, weight_VH),
        project(hidden_NH, weight_VH, out=out_NV),
        project_back(gradient_NV, weight_VH),
        total_VH,
    )
    hidden_NH, weight_VH, gradient_NV = (one.double() for one in (hidden_NH, weight_VH, gradient_NV))
    logits_NV = hidden_NH @ weight_VH.T
    expected = logits_NV, logits_NV, gradient_NV @ weight_VH, 1 + gradient_NV.T @ hidden_NH
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert apart(one, other) < 1e-5  # a result rounded to bf16 would be 2e-3 off


def test_a_head_is_rounded_under_autocast_to_bf16(device):
    _, weight_VH, _ = operands(device, torch.float32)
    with torch.autocast(device.type, torch.bfloat16):
        used_VH = in_step_precision(weight_VH)
    assert used_VH.dtype == (torch.bfloat16 if device.type == "cuda" else torch.float32)
    assert in_step_precision(weight_VH) is weight_VH


def test_what_mixed_precision_leaves_in_fp32_takes_tf32_on_the_card_alone(device):
    hidden_NH, weight_VH, _ = operands(device, torch.float32)
    expected = hidden_NH.double() @ weight_VH.double().T
    has_them = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 8
    before = torch.get_float32_matmul_precision()
    try:
        use_tensor_cores(device, "32-true")
        assert apart(hidden_NH @ weight_VH.T, expected) < 1e-5
        use_tensor_cores(device, "bf16-mixed")
        found = apart(hidden_NH @ weight_VH.T, expected)
        assert (1e-5 < found < 2e-3) if has_them else found < 1e-5
        # torch's compiler reads the older name of the setting, and refuses where the two disagree.
        compiled = torch.compile(lambda one, other: (one @ other.T).relu(), backend="inductor" if has_them else "eager")
        assert apart(compiled(hidden_NH, weight_VH), expected.relu()) < (2e-3 if has_them else 1e-5)
    finally:
        torch.set_float32_matmul_precision(before)
