"""A plan as tables."""

from __future__ import annotations

from dataclasses import asdict

from rich.table import Table

from gakd.planning.config import GB, Plan


def tables(plan: Plan, largest: int) -> list[Table | str]:
    """What `gakd plan` prints: models, memory by part at the peak, the phases of a step, FLOPs, and the verdict."""
    remarks = _remarks(plan)
    return [
        _models(plan), *([remarks] if remarks else []), _parts(plan), _phases(plan), _flops(plan), _verdict(plan, largest),
    ]  # fmt: skip


def _models(plan: Plan) -> Table:
    table = _table("parameters", "all", "active", "trained", "largest layer", "layers")
    for role, name, shape in (
        ("student", plan.config.student, plan.student),
        ("teacher", plan.config.teacher, plan.teacher),
    ):
        if shape is not None:
            trained = shape.trainable if role == "student" else 0
            counts = shape.parameters, shape.active, trained, shape.layer
            table.add_row(f"{role} {name}", *map(_short, counts), str(shape.layers))
    return table


def _remarks(plan: Plan) -> str:
    """What the numbers of unusual models mean."""
    lines: list[str] = []
    for role, shape in (("student", plan.student), ("teacher", plan.teacher)):
        if shape is None:
            continue
        if shape.parameters - shape.idle != shape.active:
            lines.append(
                f"The {role} routes: {_short(shape.parameters)}, {_short(shape.active)} active. FLOPs count these."
            )
        if shape.idle:
            lines.append(f"The {role} reads text: {_short(shape.idle)} of towers are frozen and idle.")
        if shape.recurrent:
            lines.append(
                f"The {role} has recurrent or convolutional layers: memory is that of their plain PyTorch path, which a GPU's "
                f"kernels need less than; FLOPs leave out what they do with their state."
            )
    return "\n".join(lines)


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
        f"The largest micro-batch that fits: {largest}. That is --micro-batch-tokens {largest * config.length}."
        if largest
        else "Not even a micro-batch of 1 fits.",
    ]
    if config.strategy == "fsdp2":
        first, other = plan.host_memory
        lines.append(
            f"Host memory while models load: {first / GB:.1f} GB in the first process, {other / GB:.1f} GB in any other; "
            f"{(first + (config.devices - 1) * other) / GB:.1f} GB on the first node's {config.devices}."
        )
    return "\n".join(lines)


def _short(entries: int) -> str:
    """30,532,122,624 as 30.53 B."""
    for size, unit in ((10**9, "B"), (10**6, "M")):
        if entries >= size:
            return f"{entries / size:.2f} {unit}"
    return f"{entries:,}"


def _table(first: str, *others: str) -> Table:
    table = Table(first)
    for name in others:
        table.add_column(name, justify="right")
    return table
