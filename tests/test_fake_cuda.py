"""One step of each kind of recipe on a CUDA device that is not there: what it waits for, copies, and multiplies in fp32.

The step runs in a process of its own, since the device must be there before torch is.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fake_cuda import guard

ROOT = Path(__file__).parent.parent
KINDS = ("gakd", "gakd_lora", "released", "policy_gradient", "uld")
# Products of so many operations belong on tensor cores; the discriminator's own, which stay in fp32, are smaller.
LARGE = 10 * 10**9

# What is known to fail: a mark goes when its reason does, and must then go, since it is strict.
KNOWN: dict[tuple[str, str], str] = {}


@pytest.fixture(scope="session")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if (why := guard.problem()) is not None:
        pytest.skip(f"no fake CUDA device: {why}")
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    with (shared / "fake_cuda.lock").open("w") as lock:  # one process of a test run looks, the others wait for it
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = shared / "fake_cuda.json"
        if not path.exists():
            path.write_text(looked())
        return json.loads(path.read_text())


def looked() -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.fake_cuda"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def checks(name: str) -> Any:
    """A test of each kind, marked where it is known to fail."""
    marks = {kind: pytest.mark.xfail(reason=KNOWN[kind, name], strict=True) for kind in KINDS if (kind, name) in KNOWN}
    return pytest.mark.parametrize("kind", [pytest.param(kind, marks=marks.get(kind, ())) for kind in KINDS])


def step_of(seen: dict[str, Any], kind: str) -> dict[str, Any]:
    step = seen["kinds"][kind]
    assert "error" not in step, step["error"]
    return step


def happened(step: dict[str, Any], *kinds: str, inside: bool | None = None) -> list[str]:
    """A line for each place where it happened, inside of micro-batches or outside."""
    return [
        f"{count} x {what} in {part}, {where}"
        for kind, part, within, what, where, count in step["happened"]
        if kind in kinds and inside in (None, within)
    ]


@checks("runs")
def test_a_step_runs(seen, kind):
    assert step_of(seen, kind)["kernels"] > 500


@checks("mixed")
def test_no_operation_meets_tensors_of_two_devices(seen, kind):
    assert happened(step_of(seen, kind), "mixed devices") == []


@checks("waits")
def test_the_host_never_waits_inside_a_micro_batch(seen, kind):
    assert happened(step_of(seen, kind), "wait", inside=True) == []


@checks("copies")
def test_nothing_is_copied_to_the_device_with_a_wait_inside_a_micro_batch(seen, kind):
    assert happened(step_of(seen, kind), "copy in", inside=True) == []


@checks("one wait")
def test_a_step_ends_with_one_wait(seen, kind):
    waits = [row for row in step_of(seen, kind)["happened"] if row[0] in ("wait", "copy in") and not row[2]]
    assert sum(row[-1] for row in waits) <= 1, happened(step_of(seen, kind), "wait", "copy in", inside=False)


@checks("fp32")
def test_no_large_product_is_in_fp32(seen, kind):
    large = [
        f"{count} x {flops / 1e9:.0f} GFLOP of {shapes} in {part}, {where}"
        for precision, flops, shapes, part, where, count in step_of(seen, kind)["products"]
        if precision in ("fp32", "fp64") and flops >= LARGE
    ]
    assert large == []


@pytest.mark.parametrize(
    ("slip", "kind", "what"),
    [
        ("asks_for_a_number", "wait", "item"),
        ("asks_for_a_truth", "wait", "item"),
        ("asks_for_a_list", "wait", "item"),
        ("picks_by_a_mask", "wait", "index by a mask"),
        ("looks_for_places", "wait", "nonzero"),
        ("copies_to_the_host", "wait", "copy to the host"),
        ("copies_numbers_in", "copy in", "copy to the device"),
        ("copies_a_table_in", "copy in", "copy to the device"),
        ("copies_without_a_wait", "copy in, no wait", "copy to the device"),
        ("mixes_devices", "mixed devices", "gather"),
    ],
)
def test_the_recorder_sees_a_slip_and_its_line(seen, slip, kind, what):
    (row,) = seen["slips"][slip]["happened"]
    assert (row[0], row[3]) == (kind, what)
    file, _, number = row[4].partition(":")
    assert file == "tests/fake_cuda/slips.py"
    body = (ROOT / file).read_text().splitlines()
    assert any(line.startswith(f"def {slip}(") for line in body[int(number) - 3 : int(number)])


def test_the_recorder_sees_nothing_where_nothing_is_wrong(seen):
    assert seen["slips"]["only_computes"]["happened"] == []
    assert seen["slips"]["only_computes"]["kernels"] == 3


def test_a_product_is_of_the_type_of_its_operands(seen):
    products = {slip: [row[:2] for row in seen["slips"][slip]["products"]] for slip in seen["slips"]}
    assert products["multiplies_in_fp32"] == [["fp32", 16]]
    assert products["multiplies_in_bf16_with_an_fp32_result"] == [["bf16", 16]]
