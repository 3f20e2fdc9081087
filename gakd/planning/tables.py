"""A plan as tables."""

from __future__ import annotations

from dataclasses import asdict

from rich.table import Table

from gakd.planning.config import GB, Plan


def tables(plan: Plan, largest: int) -> list[Table | str]:
    """What `gakd plan` prints: models, memory by part at the peak, the phases of a step, FLOPs, and the verdict."""
    return [_models(plan), _parts(plan), _phases(plan), _flops(plan), _verdict(plan, largest)]


def _models(plan: Plan) -> Table:
    table = _table("parameters", "all", "trained", "of a layer", "layers")
    config, teacher = plan.config, plan.teacher
    table.add_row(f"student {config.student}", *_counts(plan.student.parameters, plan.student.trainable, plan.student.layer),
                  str(plan.student.layers))  # fmt: skip
    if teacher is not None:
        table.add_row(f"teacher {config.teacher}", *_counts(teacher.parameters, 0, teacher.layer), str(teacher.layers))
    return table


def _parts(plan: Plan) -> Table:
    table = _table("memory of a device, GB", f"at the peak: {plan.busiest}")
    for part, size in asdict(plan.phases[plan.busiest]).items():
        table.add_row(part.replace("_", " "), f"{size / GB:.3f}")
    table.add_section()
    table.add_row("sum", f"{plan.peak / GB:.3f}")
    return table


def _phases(plan: Plan) -> Table:
    table = _table("phases of a step, GB", "sum")
    for name, parts in plan.phases.items():
        table.add_row(name, f"{parts.total / GB:.3f}")
    return table


def _flops(plan: Plan) -> Table:
    flops = plan.flops
    values = flops.forward, flops.backward, flops.recompute, flops.teacher, flops.total
    table = _table("GFLOP per token", "forward", "backward", "recompute", "teacher", "sum")
    table.add_row("", *(f"{value / 1e9:.3f}" for value in values))
    return table


def _verdict(plan: Plan, largest: int) -> str:
    config = plan.config
    fits = "fits" if plan.fits else "does not fit"
    lines = [
        f"{plan.peak / GB:.2f} GB at the peak, {config.device_memory:g} GB a device: {fits}.",
        f"The largest micro-batch that fits: {largest}." if largest else "Not even a micro-batch of 1 fits.",
    ]
    if config.strategy == "fsdp2":
        lines.append(
            f"Host memory while models load: {plan.host_memory / GB:.1f} GB in each of {config.devices} processes of a node, "
            f"{config.devices * plan.host_memory / GB:.1f} GB a node."
        )
    return "\n".join(lines)


def _counts(*values: int) -> list[str]:
    return [f"{value:,}" for value in values]


def _table(first: str, *others: str) -> Table:
    table = Table(first)
    for name in others:
        table.add_column(name, justify="right")
    return table
