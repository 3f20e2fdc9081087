"""Tables of one case, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.benchmarks.roofline.clock import mfu
from tests.fake_cuda.parts import PARTS

_ROWS = 14


def text(case: dict[str, Any]) -> str:
    """All tables of a case, with a title."""
    few = case["first_layers_only"]
    cut = f", the first {few} of each model alone: not to be quoted" if few else ""
    title = f"### {case['name']} (modelled, {case['layers']} layers{cut})"
    shapes = ", ".join(f"{count} of {shape}" for shape, count in _counted(case["shapes"]))
    about = (
        f"{case['student']} from {case['teacher']}; micro-batches: {shapes}; {case['supervised']:,} supervised rows, "
        f"{case['tokens']:,} tokens; {case['kernels_a_micro_batch']:,.0f} kernels a micro-batch"
    )
    return "\n".join([title, "", about, "", *_parts(case), "", *_timeline(case), "", *_waits(case), "", *_memory(case), "",
                      *_heaviest(case), ""])  # fmt: skip


def _counted(shapes: list[list[int]]) -> list[tuple[str, int]]:
    names = [f"{size} x {length}" for size, length in shapes]
    return [(name, names.count(name)) for name in dict.fromkeys(names)]


def _parts(case: dict[str, Any]) -> Iterator[str]:
    yield "| part, a whole step | kernels | TFLOP | in fp32 | GB | launch ms at 8 us | ms | products ms | roofline ms | MFU |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"
    for name in (*PARTS, "sum"):
        row = case["parts"].get(name)
        if row is None:
            continue
        share = row["fp32_flops"] / row["flops"] if row["flops"] else 0
        yield (
            f"| {name} | {row['kernels']:,} | {row['flops'] / 1e12:.2f} | {share:.0%} | {row['bytes'] / 1e9:.1f} "
            f"| {row['kernels'] * 8e-3:.1f} | {row['seconds'] * 1e3:.1f} | {row['products'] * 1e3:.1f} "
            f"| {row['roofline'] * 1e3:.1f} | {mfu(row['flops'], row['seconds']):.1%} |"
        )


def _timeline(case: dict[str, Any]) -> Iterator[str]:
    yield "| host, a kernel | step ms | tokens a second | MFU |"
    yield "| --- | --- | --- | --- |"
    for host, row in case["timeline"].items():
        yield f"| {host} | {row['seconds'] * 1e3:,.1f} | {row['tokens_a_second']:,.0f} | {row['mfu']:.1%} |"


def _waits(case: dict[str, Any]) -> Iterator[str]:
    yield "| times a step | what | part | in a micro-batch | where |"
    yield "| --- | --- | --- | --- | --- |"
    for row in case["waits"]:
        size = f", {row['bytes']:,} bytes" if row["bytes"] else ""
        inside = "yes" if row["inside_a_micro_batch"] else "no"
        yield f"| {row['times']} | {row['kind']}: {row['what']}{size} | {row['part']} | {inside} | {row['where']} |"


def _memory(case: dict[str, Any]) -> Iterator[str]:
    memory = case["memory"]
    yield f"| peak of {memory['peak'] / 1e9:.1f} GB, {memory['standing'] / 1e9:.1f} GB of them between steps | GB |"
    yield "| --- | --- |"
    for part, size in memory["parts"].items():
        yield f"| {part} | {size / 1e9:.1f} |"


def _heaviest(case: dict[str, Any]) -> Iterator[str]:
    yield "| ms a step | times | operation | shapes | part | where |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for row in case["heaviest"][:_ROWS]:
        name = f"{row['operation']} {row['precision']}".strip()
        yield (
            f"| {row['seconds'] * 1e3:.1f} | {row['times']} | {name} | {row['shapes'].replace('|', ' ')} | {row['part']} "
            f"| {row['where']} |"
        )
