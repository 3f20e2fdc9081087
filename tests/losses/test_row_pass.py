"""Which kernel runs a row pass, what it hands back, and how often the compiled one is compiled."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from gakd import (
    AdaptiveKL,
    AlphaBeta,
    CrossEntropy,
    Divergence,
    ForwardKL,
    JensenShannon,
    PolicyGradient,
    ReverseKL,
    SkewForwardKL,
    SkewReverseKL,
    TotalVariation,
    UniversalLogit,
)
from gakd.losses import compiled, row_pass
from gakd.losses.formula import RowFormula, formulas_of
from gakd.losses.kernel import row_losses_and_gradient
from gakd.types import LogitShape

ROOT = Path(__file__).parents[2]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SHAPE = LogitShape()
with_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def rows(count: int, vocab_size: int = 30):
    torch.manual_seed(0)
    logits = torch.randn(count, vocab_size), torch.randn(count, vocab_size)
    return *logits, torch.randint(0, vocab_size, (count,))


def test_a_kernel_is_chosen_by_name_and_device(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert row_pass.row_pass("auto", CPU) is row_pass.eager_pass
    assert row_pass.row_pass("compiled", CPU) is row_pass.compiled_pass
    monkeypatch.setattr(row_pass, "has_triton", lambda: True)
    assert row_pass.row_pass("auto", CUDA) is row_pass.triton_pass
    assert row_pass.row_pass("triton", CUDA) is row_pass.triton_pass
    with pytest.raises(ValueError, match="kernel triton runs on a GPU, got cpu: use auto"):
        row_pass.row_pass("triton", CPU)
    monkeypatch.setattr(row_pass, "has_triton", lambda: False)
    assert row_pass.row_pass("auto", CUDA) is row_pass.eager_pass
    with pytest.raises(ValueError, match="needs the package triton, which is not installed: use auto"):
        row_pass.row_pass("triton", CUDA)
    with pytest.raises(ValueError, match="kernel is auto, eager, compiled or triton, got 'fast'"):
        row_pass.row_pass("fast", CPU)  # type: ignore[arg-type]


def test_a_subclass_with_other_maths_has_no_formula_of_its_parent():
    class Doubled(ForwardKL):
        def losses(self, student_log_probs_NV, teacher_log_probs_NV):
            return 2 * super().losses(student_log_probs_NV, teacher_log_probs_NV)

    class OtherGradient(ReverseKL):
        def losses_and_gradient(self, chunk):
            losses_N, gradient_NV = super().losses_and_gradient(chunk)
            return losses_N, 3 * gradient_NV

    class OtherSamples(PolicyGradient):
        def of_labels(self, chunk, log_probs_N):
            return -log_probs_N

    class Renamed(ForwardKL):
        name = "renamed"

    class Told(ForwardKL):
        def losses(self, student_log_probs_NV, teacher_log_probs_NV):
            return super().losses(student_log_probs_NV, teacher_log_probs_NV)

        def row_formula(self):
            return RowFormula("forward_kl")

    class Written(Divergence):
        name = "written"

        def losses(self, student_log_probs_NV, teacher_log_probs_NV):
            return (student_log_probs_NV - teacher_log_probs_NV).square().sum(-1)

    patched = ForwardKL()
    patched.losses = lambda log_q_NV, log_p_NV: log_q_NV.sum(-1)  # type: ignore[method-assign]
    for term in (Doubled(), OtherGradient(), OtherSamples(), Written(), patched, AdaptiveKL(), UniversalLogit()):
        assert formulas_of([CrossEntropy(), term]) is None, term.name
    for term in (Renamed(), Told(), ForwardKL()):
        assert formulas_of([term]) == [RowFormula("forward_kl")]


def test_formulas_carry_a_terms_numbers_and_fall_to_the_kl_divergences_at_their_limits():
    terms = [
        JensenShannon(0.3), JensenShannon(0.0), JensenShannon(1.0), SkewForwardKL(0.0), SkewReverseKL(0.0),
        SkewReverseKL(0.2, detach_mixture=True), AlphaBeta(0.6, -0.6), AlphaBeta(0.2, 0.3), TotalVariation(),
    ]  # fmt: skip
    assert formulas_of(terms) == [
        RowFormula("jensen_shannon", 0.3), RowFormula("forward_kl"), RowFormula("reverse_kl"), RowFormula("forward_kl"),
        RowFormula("reverse_kl"), RowFormula("skew_reverse_kl_detached", 0.2),
        RowFormula("alpha_beta_of_sum_zero", 0.6, -0.6), RowFormula("alpha_beta", 0.2, 0.3), RowFormula("total_variation"),
    ]  # fmt: skip
    of_rows = RowFormula("skew_forward_kl", 0.0, row_value="skew_alpha")
    assert formulas_of([SkewForwardKL(0.0)], {"skew_alpha": torch.ones(1)}) == [of_rows]


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_gradient_comes_in_the_dtype_or_the_tensor_that_is_asked_for(dtype):
    arguments = *rows(5), [CrossEntropy(), ReverseKL(2.0)], [0.5, 1.5], SHAPE, SHAPE
    expected = row_losses_and_gradient(*arguments).gradient_NV
    assert expected is not None
    own = row_pass.eager_pass(*arguments, gradient_dtype=dtype).gradient_NV
    assert own is not None
    assert torch.equal(own, expected.to(dtype or torch.float32))
    product_NV = arguments[0]
    result = row_pass.eager_pass(*arguments, out_NV=product_NV)
    assert result.gradient_NV is product_NV
    assert torch.equal(product_NV, expected)


@with_triton
def test_the_triton_pass_is_one_operation_that_fake_tensors_know():
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode

    from gakd.losses import row_op

    seen = []

    class Operations(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            seen.append(str(function))
            return function(*arguments, **(keywords or {}))

    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        logits_NV, teacher_NV = torch.empty(6, 40), torch.empty(6, 40)
        labels_N = torch.empty(6, dtype=torch.long)
        with Operations():
            result = row_pass.triton_pass(
                logits_NV, teacher_NV, labels_N, [CrossEntropy(), ReverseKL()], [0.5, 0.5], SHAPE, SHAPE, True,
                gradient_dtype=torch.bfloat16,
            )  # fmt: skip
    assert result.gradient_NV is not None
    assert (result.gradient_NV.dtype, result.gradient_NV.shape) == (torch.bfloat16, (6, 40))
    assert [values.shape for values in (*result.losses, *result.log_normalizers)] == [(6,)] * 4
    views = ("aten.select", "aten.slice", "aten.alias", "aten.detach", "prim.device")  # and questions: no kernels
    own = [name for name in seen if not name.startswith(views)]
    assert own == ["aten.empty_like.default", str(row_op.row_pass_op._opoverload)], own


@with_triton
def test_where_triton_fails_the_compiled_pass_takes_over_with_a_warning(monkeypatch):
    from gakd.losses import row_op

    def broken(*_):
        raise RuntimeError("no driver here")

    monkeypatch.setattr(row_pass, "triton_failures", [])
    monkeypatch.setattr(row_op, "triton_rows", broken)
    monkeypatch.setattr(row_pass, "compiled_pass", row_pass.eager_pass)
    arguments = *rows(5), [CrossEntropy(), ReverseKL()], [0.5, 1.5], SHAPE, SHAPE
    with pytest.warns(UserWarning, match=r"the Triton kernel failed, torch.compile takes over: no driver here"):
        got = row_pass.triton_pass(*arguments).gradient_NV
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = row_pass.triton_pass(*arguments).gradient_NV  # said once
    expected = row_losses_and_gradient(*arguments).gradient_NV
    assert got is not None
    assert again is not None
    assert expected is not None
    assert torch.equal(got, expected)
    assert torch.equal(again, expected)


@pytest.mark.slow
def test_the_compiled_pass_is_compiled_once_whatever_the_rows_temperatures_and_weights(monkeypatch):
    made = []

    def count(graph, _):
        made.append(graph)
        return graph.forward

    torch_compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: torch_compile(function, backend=count))
    torch._dynamo.reset()
    run = compiled.CompiledRows()
    for normalizers in (False, True):
        before = len(made)
        for step, count_ in enumerate((256, 204, 2, 1, 7, 128, 1000)):
            for temperature in (1.5, 2.0, 4.0):
                terms = [CrossEntropy(), ReverseKL(temperature), AdaptiveKL(0.5, temperature), SkewForwardKL(0.1)]
                values = {"skew_alpha": torch.full((count_,), 0.3)}
                arguments = *rows(count_), terms, [0.1 * step + 0.1, temperature, 0.7, 0.2], SHAPE, LogitShape(0.5, 3.0)
                with warnings.catch_warnings(), torch.no_grad():
                    warnings.simplefilter("error", UserWarning)
                    got = run(*arguments, normalizers, None, values)
                expected = row_losses_and_gradient(*arguments, normalizers, None, values)
                for own_N, wanted_N in zip(
                    [*got.losses, *got.log_normalizers], [*expected.losses, *expected.log_normalizers], strict=True
                ):
                    torch.testing.assert_close(own_N, wanted_N, rtol=1e-5, atol=1e-5)
                torch.testing.assert_close(got.gradient_NV, expected.gradient_NV, rtol=1e-4, atol=1e-6)
        assert len(made) - before == 1, f"{len(made) - before} compilations, normalizers {normalizers}"


@pytest.mark.slow
@with_triton
def test_the_triton_kernel_compiles_for_an_h100_without_spills_and_once_whatever_the_rows_and_numbers():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.losses.row_kernel_compiles"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    launches = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(launches) == 5
    for launch in launches:
        assert launch["made"] == launch["warm"], launch  # nothing after the first call
        assert launch["warm"] == (2 if launch["name"] == "of rows" else 1), launch
        for usage in launch["usage"]:
            assert usage["local"] in (0, None), launch
            assert usage["stack"] in (0, None), launch
