"""The token pass at a real vocabulary: every way gives gakd's loss and gradients, then takes its time.

Two settings of the numbers: `mixed`, as gakd trains (fp32 head of the student, bf16 autocast, bf16 hidden states and teacher),
and `bf16`, all of them bf16 without autocast. A CPU has fp32 alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from gakd.products import add_outer_, project, project_back, result_dtype
from tests.benchmarks.work import normal
from tests.gpu.meters import median_ms
from tests.gpu.setting import Setting, first_line
from tests.gpu.token_ways import BETA, Rows, Way, ways

FLOOR = "four products"
# Logits rounded to bf16 (the whole ones, Liger's chunked ones) are 2e-3 of themselves off, gradients of bf16 sums more.
LOSS_TOLERANCE, COSINE, NORM_TOLERANCE = 2e-2, 0.99, 3e-2
SLOWEST_SECONDS = 45  # what one way may take, its compiler included


def run(setting: Setting) -> None:
    numbers = ["fp32"] if setting.dry else ["mixed", "bf16"]
    for kind in numbers:
        for width in setting.sizes.widths:
            made: dict[str, Rows] = {}
            for divergence in BETA:
                title = {"numbers": kind, "width": width, "divergence": divergence}
                if setting.deadline.left < (0 if setting.dry else SLOWEST_SECONDS):
                    setting.report(title | {"way": "all", "left_out": "no time left"})
                    continue
                rows = made[kind] if made else _inputs(setting, kind, width)
                made[kind] = rows = rows._replace(divergence=divergence)
                with torch.autocast("cuda", torch.bfloat16) if kind == "mixed" else nullcontext():
                    _measure(setting, rows, title)
            made.clear()
            setting.meter.forget()


def _inputs(setting: Setting, kind: str, width: int) -> Rows:
    """Logits of standard deviation 2.5, the teacher's in part the student's."""
    count, vocabulary, device = setting.sizes.rows, setting.sizes.vocabulary, setting.device
    low = torch.float32 if kind == "fp32" else torch.bfloat16
    head_dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    hidden_NH = normal(count, width, scale=1.0, seed=0, device=device, dtype=low)
    weight_VH = normal(vocabulary, width, scale=2.5 * width**-0.5, seed=1, device=device, dtype=head_dtype)
    own_VH = normal(vocabulary, width, scale=2.5 * width**-0.5, seed=2, device=device, dtype=low)
    teacher_VH = own_VH.mul_(0.6).add_(weight_VH.to(low), alpha=0.8)
    labels_N = torch.randint(vocabulary, (count,), device=device)
    return Rows(hidden_NH.requires_grad_(), weight_VH.requires_grad_(), hidden_NH.detach(), teacher_VH, labels_N, "")


def _measure(setting: Setting, rows: Rows, title: dict[str, Any]) -> None:
    floor = _floor(setting, rows)
    setting.report(title | {"way": FLOOR, "ms": floor, "tflops": rows.product_flops / floor / 1e9})
    reference: tuple[float, list[Tensor]] | None = None
    for way in ways(setting.device):
        row: dict[str, Any] = title | {"way": way.name, "peer": way.peer}
        if (why := way.missing(setting.device)) is not None:
            setting.report(row | {"left_out": why})
            continue
        if setting.deadline.left <= 0:
            setting.report(row | {"left_out": "no time left"})
            continue
        if reference is None and way.peer:
            setting.report(row | {"left_out": "nothing to compare with"})
            continue
        try:
            found = _result(rows, way)
            reference = found if reference is None else reference
            row |= difference(found, reference)
            del found
            if agrees(row):
                row |= _times(setting, rows, way)
            else:
                row["error"] = "another result than gakd's: not timed"
        except torch.OutOfMemoryError:
            row["left_out"] = "out of memory"
        except Exception as error:  # a peer's failure is a cell of the table
            row["error"] = first_line(error)
        if "ms" in row:
            row |= {"to_floor": row["ms"] / floor, "tflops": rows.product_flops / row["ms"] / 1e9}
        _clear(rows)
        setting.meter.forget()
        setting.report(row)


def _times(setting: Setting, rows: Rows, way: Way) -> dict[str, Any]:
    iterate, found = _iteration(rows, way), dict[str, Any]()
    iterate()  # what is compiled for any shape, after the first
    _clear(rows)
    peak = setting.meter.peak_bytes(iterate)
    if peak is not None:
        found["peak_bytes"] = peak - sum(leaf.grad.nbytes for leaf in rows.leaves if leaf.grad is not None)
    return found | {"ms": median_ms(setting.meter, iterate, setting.sizes.rounds, lambda: _clear(rows))}


def _iteration(rows: Rows, way: Way) -> Callable[[], Tensor]:
    forward = way.prepare(rows)

    def iterate() -> Tensor:
        loss = forward()
        loss.backward()
        return loss.detach()

    return iterate


def _result(rows: Rows, way: Way) -> tuple[float, list[Tensor]]:
    _clear(rows)
    loss = float(_iteration(rows, way)())
    gradients = [leaf.grad for leaf in rows.leaves if leaf.grad is not None]
    _clear(rows)
    return loss, gradients


def difference(found: tuple[float, list[Tensor]], reference: tuple[float, list[Tensor]]) -> dict[str, float]:
    """Of losses, and of both gradients' directions and lengths."""
    apart: dict[str, float] = {
        "loss": found[0],
        "loss_apart": abs(found[0] - reference[0]) / max(abs(reference[0]), 1e-3),
    }
    for name, own, other in zip(("hidden", "head"), found[1], reference[1], strict=True):
        length, expected = _norm(own), _norm(other)
        apart[f"{name}_cosine"] = _dot(own, other) / max(length * expected, 1e-30)
        apart[f"{name}_length"] = length / max(expected, 1e-30)
    return apart


def agrees(apart: dict[str, Any]) -> bool:
    lengths = [apart[f"{name}_length"] for name in ("hidden", "head")]
    cosines = [apart[f"{name}_cosine"] for name in ("hidden", "head")]
    return (
        apart["loss_apart"] <= LOSS_TOLERANCE
        and all(one >= COSINE for one in cosines)
        and all(abs(one - 1) <= NORM_TOLERANCE for one in lengths)
    )


def _floor(setting: Setting, rows: Rows) -> float:
    """The four products alone, all rows at once, operands as the step has them, results and sums in fp32."""
    low = torch.bfloat16 if rows.hidden_NH.dtype == torch.bfloat16 else torch.float32
    with torch.no_grad():
        hidden_NH, weight_VH = rows.hidden_NH.detach(), rows.weight_VH.detach().to(low)
        gradient_NV = hidden_NH.new_full((len(hidden_NH), len(weight_VH)), 1e-4)
        total_VH = torch.zeros_like(weight_VH, dtype=result_dtype(low))
        logits_NV = gradient_NV.new_empty(gradient_NV.shape, dtype=result_dtype(low))

    @torch.no_grad()
    def iterate() -> None:
        project(hidden_NH, weight_VH, out=logits_NV)
        project(rows.teacher_hidden_NH, rows.teacher_weight_VH, out=logits_NV)
        project_back(gradient_NV, weight_VH)
        add_outer_(total_VH, gradient_NV, hidden_NH)

    with torch.autocast(setting.device.type, enabled=False):
        iterate()
        return median_ms(setting.meter, iterate, setting.sizes.rounds)


def _dot(one: Tensor, other: Tensor) -> float:
    """Of matrices, some rows at a time, so that no fp32 copy of a head is made."""
    return math.fsum(
        float((own.float() * its.float()).sum(dtype=torch.float64))
        for own, its in zip(one.split(8192), other.split(8192), strict=True)
    )


def _norm(one: Tensor) -> float:
    return math.sqrt(_dot(one, one))


def _clear(rows: Rows) -> None:
    for leaf in rows.leaves:
        leaf.grad = None
