"""The Triton kernel of the row pass, interpreted on a CPU: values and gradients against the eager pass in float64."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gakd.losses.kernel import RowResult, row_losses_and_gradient
from tests.losses.row_kernel_cases import ALONE, CASES, EQUAL, MIXED, Case, inputs

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def run(names: list[str], folder: Path) -> dict[str, RowResult]:
    out = folder / "results.pt"
    command = [sys.executable, "-W", "error::UserWarning:gakd", "-m", "tests.losses.row_kernel_cases", str(out), *names]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return {name: RowResult(*values) for name, values in torch.load(out).items()}


def oracle(case: Case) -> RowResult:
    arguments = inputs(case, torch.float64)
    arguments["teacher_product_NV"] = arguments.pop("teacher_product_NU")
    return row_losses_and_gradient(**arguments)


def compare(name: str, case: Case, got: RowResult) -> None:
    expected = oracle(case)
    assert [values.dtype for values in got.losses] == [torch.float32] * len(case.terms), name
    for kind, ours, theirs in (
        ("losses", got.losses, expected.losses),
        ("log-sum-exps", got.log_normalizers, expected.log_normalizers),
    ):
        assert len(ours) == len(theirs), name
        for own_N, wanted_N in zip(ours, theirs, strict=True):
            torch.testing.assert_close(
                own_N.double(),
                wanted_N.double(),
                rtol=1e-5,
                atol=3e-6,
                msg=lambda text, kind=kind: f"{name}, {kind}: {text}",
            )
    if not case.terms:
        assert got.gradient_NV is None, name
        return
    assert got.gradient_NV is not None, name
    assert expected.gradient_NV is not None, name
    assert got.gradient_NV.dtype == (case.gradient_dtype or torch.float32), name
    # Rounded once, to 8 bits; the interpreter cuts where the GPU's `cvt.rn` rounds to the nearest.
    rtol = 1e-5 if case.gradient_dtype is None else 2**-7
    size = expected.gradient_NV.abs().amax(-1, keepdim=True)
    error_NV = (got.gradient_NV.double() - expected.gradient_NV).abs()
    assert bool((error_NV <= rtol * expected.gradient_NV.abs() + 2e-6 * size).all()), f"{name}: {error_NV.max():.2g}"
    assert bool(got.gradient_NV.isfinite().all()), name


def test_cross_entropy_and_reverse_kl_in_two_reads(tmp_path):
    name = "two reads"
    compare(name, CASES[name], run([name], tmp_path)[name])


@pytest.mark.slow
def test_each_closed_form_alone(tmp_path):
    for name, got in run([*ALONE], tmp_path).items():
        compare(name, CASES[name], got)


@pytest.mark.slow
def test_each_closed_form_and_its_gradient_are_exactly_zero_where_the_models_agree(tmp_path):
    for name, got in run([*EQUAL, "equal, cooled and capped"], tmp_path).items():
        for losses_N in got.losses:
            assert torch.equal(losses_N, torch.zeros_like(losses_N)), name
        assert got.gradient_NV is not None
        assert torch.equal(got.gradient_NV, torch.zeros_like(got.gradient_NV)), name


@pytest.mark.slow
def test_mixtures_temperatures_shapes_of_logits_banned_tokens_and_dtypes(tmp_path):
    for name, got in run([*MIXED], tmp_path).items():
        compare(name, CASES[name], got)
