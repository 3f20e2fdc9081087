"""The arithmetic of the modelled step: seconds of a kernel, the host ahead of the device, what is repeated and replaced."""

from __future__ import annotations

import pytest

from tests.benchmarks.roofline import DOLLY, FIXED, ROW_PASS_BYTES, ROW_PASS_KERNELS, WAIT
from tests.benchmarks.roofline.clock import mfu, roofline_seconds, rows, seconds, timeline
from tests.benchmarks.roofline.compiled import with_compiled_rows
from tests.benchmarks.roofline.figures import expanded
from tests.fake_cuda.kernels import Kernel
from tests.fake_cuda.parts import part_of
from tests.fake_cuda.recorder import Event


def kernel(launches: int = 1, flops: int = 0, precision: str = "", moved: int = 0, name: str = "mul") -> Kernel:
    return Kernel(name, launches, flops, precision, moved, "")


def event(
    what: Kernel | None, kind: str = "kernel", part: str = "other", micro: int | None = None, layer: str = ""
) -> Event:
    return Event(kind, part, micro, layer, False, "", "", what)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("precision", "flops_a_second"), [("bf16", 0.7 * 989e12), ("tf32", 0.65 * 495e12), ("fp32", 0.8 * 67e12)]
)
def test_a_large_product_takes_what_its_operands_take(precision, flops_a_second):
    assert seconds(kernel(flops=10**12, precision=precision)) == pytest.approx(1e12 / flops_a_second)


def test_a_kernel_takes_the_longest_of_its_bytes_its_products_and_the_shortest_time():
    assert seconds(kernel(moved=335 * 10**9)) == pytest.approx(0.1 / 0.85)
    assert roofline_seconds(kernel(moved=335 * 10**9)) == pytest.approx(0.1)
    assert seconds(kernel(flops=10**9, precision="bf16", moved=335 * 10**9)) == pytest.approx(0.1 / 0.85)
    assert seconds(kernel(moved=8)) == 2e-6
    assert seconds(kernel(launches=0)) == 0.0


def test_a_slow_host_is_waited_for_and_a_fast_one_runs_ahead():
    short = [event(kernel()) for _ in range(100)]
    assert timeline(short, host=8e-6) == pytest.approx(100 * 8e-6 + 2e-6)
    assert timeline(short, host=1e-6) == pytest.approx(1e-6 + 100 * 2e-6)


def test_a_wait_drains_the_queue_before_the_host_goes_on():
    long = event(kernel(moved=335 * 10**9))
    took, then = seconds(kernel(moved=335 * 10**9)), [event(kernel()) for _ in range(10)]
    assert timeline([long, *then], host=4e-6) == pytest.approx(4e-6 + took + 10 * 2e-6)
    assert timeline([long, event(None, "wait"), *then], host=4e-6) == pytest.approx(
        4e-6 + took + WAIT + 10 * 4e-6 + 2e-6
    )


def test_parts_add_up_to_the_sum():
    work = [
        ("a", event(kernel(flops=10**12, precision="fp32"))),
        ("b", event(kernel(moved=10**9))),
        ("b", event(None, "wait")),
    ]
    table = rows(work)
    assert list(table) == ["a", "b", "sum"]
    assert table["sum"].seconds == table["a"].seconds + table["b"].seconds
    assert (table["sum"].kernels, table["sum"].fp32_flops, table["sum"].bytes) == (2, 10**12, 10**9)
    assert mfu(989e12, 2.0) == 0.5


def test_a_micro_batch_that_stands_for_others_is_repeated_in_its_place():
    step = [
        event(None, part=name, micro=micro)
        for name, micro in (("in", None), ("a", 0), ("b", 1), ("c", 3), ("out", None))
    ]
    assert [one.part for one in expanded(step, {1: 2})] == ["in", "a", "b", "b", "c", "out"]


def test_the_row_pass_of_a_chunk_becomes_what_a_compiler_makes_of_it():
    eager = [event(kernel(moved=1), part="token pass: rows", layer="rows 1000", micro=0) for _ in range(30)]
    other = event(kernel(moved=5), part="token pass", micro=0)
    made = with_compiled_rows([*eager, other, *eager])
    assert sum(one.kernel.launches for one in made if one.kernel) == 2 * ROW_PASS_KERNELS + 1
    moved = sum(one.kernel.bytes for one in made if one.kernel) - 5
    assert moved == pytest.approx(2 * 1000 * ROW_PASS_BYTES, rel=0.01)


def test_a_row_pass_that_is_a_kernel_of_the_package_stays():
    own = [event(kernel(name="gakd::row_pass"), part="token pass: rows", layer="rows 1000", micro=0)]
    assert with_compiled_rows(own) == own


def test_products_and_sums_of_the_token_pass_are_told_apart():
    head = (500, 8)
    assert part_of(event(kernel(flops=10), part="token pass"), head) == "token pass: products"
    assert part_of(event(kernel(), part="token pass"), head) == "token pass: sums"
    backward = Event("kernel", "student forward", 0, "", True, "", "", Kernel("add", 1, 0, "", 9, "(500, 8)->(500, 8)"))
    assert part_of(backward, head) == "head gradient sums"


def test_a_step_has_as_many_sequences_as_the_papers():
    assert (len(FIXED), len(DOLLY)) == (32, 32)
