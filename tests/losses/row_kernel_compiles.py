"""The Triton kernel compiled for an H100 on a machine without a GPU; prints what of it, as JSON, one line a launch.

A driver that only says which GPU it would be lets Triton's own launcher choose what to compile, and stop short of a launch.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from gakd import CrossEntropy, JensenShannon, PolicyGradient, ReverseKL, SkewForwardKL
from gakd.losses import row_op
from gakd.losses.formula import formulas_of
from gakd.types import LogitShape

VOCAB = 1536  # a multiple of 16, as vocabularies are
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


class Pretended:
    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        return GPUTarget("cuda", 90, 32)


class Compiler:
    """In the place of the kernel: compiles what would be launched, and keeps what is new."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.made: dict[int, Any] = {}

    def __getitem__(self, grid: Any) -> Any:
        def launch(*arguments: Any, **options: Any) -> None:
            made = self.kernel.run(*arguments, grid=grid, warmup=True, **options)
            self.made[id(made)] = made

        return launch


def resources(kernel: Any) -> dict[str, Any]:
    """Registers a thread, and bytes a thread of local memory, which is what spills; None without NVIDIA's tool."""
    found: dict[str, Any] = {"registers": None, "local": None, "stack": None}
    if (TOOLS / "cuobjdump").exists():
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            Path(file.name).write_bytes(kernel.asm["cubin"])
            command = [str(TOOLS / "cuobjdump"), "--dump-resource-usage", file.name]
            words = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        of = dict(word.split(":", 1) for word in words if word.count(":") == 1)
        found = {"registers": int(of["REG"]), "local": int(of["LOCAL"]), "stack": int(of["STACK"])}
    return found


def rows(count: int, terms: Any, start: int = 0, factor: float = 0.5, shape: LogitShape | None = None) -> None:
    student_NV, teacher_NV = torch.zeros(count, VOCAB), torch.zeros(count, VOCAB)
    labels_N = torch.zeros(start + count, dtype=torch.long)[start:]  # a slice begins where it begins
    values = {
        name: torch.zeros(start + count)[start:]
        for name in ("advantages", "old_log_probs", "skew_alpha")
        if any(term.name in ("policy_gradient", "skew_forward_kl") for term in terms)
    }
    formulas = formulas_of(terms, values)
    assert formulas is not None
    row_op.triton_rows(
        student_NV, teacher_NV, labels_N, terms, [factor] * len(terms), shape or LogitShape(), shape or LogitShape(),
        False, VOCAB, values, formulas, torch.bfloat16,
    )  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    driver.set_active(Pretended())
    compiler = row_op.row_pass_kernel = Compiler(row_op.row_pass_kernel)  # type: ignore[assignment]
    cases = {
        "two reads": lambda n, start, t: rows(n, [CrossEntropy(t), ReverseKL(t)], start, t / 7),
        "two temperatures": lambda n, start, t: rows(n, [CrossEntropy(t), ReverseKL(t + 1)], start, t / 7),
        "three reads": lambda n, start, t: rows(n, [CrossEntropy(t), JensenShannon(t / 9, t)], start, 1.0),
        "capped": lambda n, start, t: rows(n, [ReverseKL(t)], start, 1.0, LogitShape(t, 20.0 + t)),
        "of rows": lambda n, start, t: rows(n, [PolicyGradient(None, t), SkewForwardKL(0.1, t)], start, t),
    }
    for name, case in cases.items():
        before = len(compiler.made)
        case(128, 0, 1.0)
        warm = [*compiler.made.values()][before:]
        for count, start, temperature in ((1, 0, 1.0), (2, 1, 1.5), (7, 3, 2.0), (256, 128, 3.0), (1000, 7, 4.0)):
            case(count, start, temperature)
        made = [*compiler.made.values()][before:]
        usage = [resources(kernel) for kernel in warm]
        print(json.dumps({"name": name, "warm": len(warm), "made": len(made), "usage": usage}))


if __name__ == "__main__":
    main()
