"""Results as tables: on the console and in Markdown. `python -m tests.benchmarks.report FOLDER` renders a run again."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from tests.benchmarks.cases import LIGER, PLAIN, TORCHTUNE, TRL

PEERS = (*PLAIN, *TORCHTUNE, *TRL, *LIGER)  # the order of columns
REFERENCES = {
    "token": "floor", "adversary": "direct", "step": "release", "trainer": "DistillationTrainer", "sampling": "one at a time",
}  # fmt: skip
TITLES = {
    "token": "Token terms: time / time of just the matrix products, (time / ours), MB beyond inputs and gradients; without CUDA, "
    "TRL chunked is its torch fallback",
    "adversary": "Adversary: time / the direct way, (time / ours), MB beyond inputs and gradients",
    "step": "Whole step: time / the release's step, (time / ours), MB beyond models and optimizers",
    "trainer": "Distillation step, no game: time / TRL's DistillationTrainer (without CUDA its torch fallback), MB beyond models "
    "and optimizers",
    "sampling": "Sampling: time / one prompt at a time, tokens/s, MB beyond models",
}
NORM_TOLERANCE = {"cpu": 5e-3}  # relative; the release's log(x + 1e-9) alone moves it by 1e-3; a GPU computes in bf16
BF16_TOLERANCE = 3e-2

Results = dict[str, Any]


class Grid(NamedTuple):
    """One family under one allocator."""

    family: str
    allocator: str
    implementations: list[str]
    cases: list[str]
    rows: dict[tuple[str, str], dict[str, Any]]  # (case, implementation)
    memory: dict[tuple[str, str], float]  # MB, always from the default allocator


def grids(results: Results) -> list[Grid]:
    """Families in their order, one grid an allocator."""
    found = []
    for family in TITLES:
        rows = [row for row in results["rows"] if row["family"] == family]
        memory = {
            (row["case"], row["implementation"]): row["extra_mb"]
            for row in rows
            if "extra_mb" in row and (row["allocator"] == "default" or results["environment"]["device"] != "cpu")
        }
        for allocator in list(dict.fromkeys(row["allocator"] for row in results["rows"])):
            own = [row for row in rows if row["allocator"] == allocator]
            if not own:
                continue
            present = list(dict.fromkeys(row["implementation"] for row in own))
            first = [REFERENCES[family], *sorted((n for n in present if n.startswith("ours")), key=len)]
            order = [*first, *(name for name in PEERS if name not in first), *present]
            implementations = [name for name in dict.fromkeys(order) if name in present]
            found.append(
                Grid(
                    family,
                    allocator,
                    implementations,
                    list(dict.fromkeys(row["case"] for row in own)),
                    {(row["case"], row["implementation"]): row for row in own},
                    memory,
                )
            )
    return found


def cell(grid: Grid, case: str, implementation: str, line_break: str) -> str:
    row = grid.rows.get((case, implementation))
    if row is None:
        return "–"
    if "error" in row:
        return "failed"
    if implementation == REFERENCES[grid.family]:
        time = f"{row['seconds']:.2f} s"
    elif implementation == "ours":
        time = f"{row['to_reference']:.2f}"
    else:
        time = f"{row['to_reference']:.2f} ({row['to_ours']:.2f})"
    lines = [time]
    if grid.family == "sampling":
        written = row["parameters"]["prompts"] * row["parameters"]["new_tokens"]
        lines.append(f"{written / row['seconds']:,.1f} tokens/s")
    if (size := grid.memory.get((case, implementation))) is not None:
        lines.append(f"{size:,.0f} MB")
    return line_break.join(lines)


def disagreements(results: Results) -> list[str]:
    """Implementations whose gradient is not that of ours: they would be timed at something else."""
    found = []
    for grid in grids(results):
        tolerance = NORM_TOLERANCE.get(results["environment"]["device"], BF16_TOLERANCE)
        for (case, implementation), row in grid.rows.items():
            ours, norm = grid.rows.get((case, "ours"), {}).get("gradient_norm"), row.get("gradient_norm")
            if ours and norm and abs(norm / ours - 1) > tolerance and implementation != "ours, centred":
                found.append(f"{grid.family}/{case}: gradient norm {norm:.6g} of {implementation}, {ours:.6g} of ours")
    return list(dict.fromkeys(found))


def failures(results: Results) -> list[str]:
    return list(
        dict.fromkeys(
            f"{row['family']}/{row['case']}, {row['implementation']}: {row['error']}"
            for row in results["rows"]
            if "error" in row
        )
    )


def notes(results: Results) -> list[str]:
    """Everything below the tables, one line each."""
    environment, settings = results["environment"], results["settings"]
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    lines = [
        f"{versions}; {environment['device']}, {environment['processor']}, {settings['threads']} threads; "
        f"{settings['rounds']} rounds" + (", QUICK: few rows, times mean nothing" if settings["quick"] else "")
    ]
    if padding := results.get("padding"):
        lines.append(
            f"padding of micro-batches of {padding['micro_batch_size']} ({padding['lengths']}): {padding['to_maximum']:.1%} to "
            f"the maximum length, {padding['shuffled']:.1%} shuffled, {padding['bucketed']:.1%} with gakd's windows"
        )
    lines += [f"failed: {line}" for line in failures(results)]
    lines += [f"computes something else: {line}" for line in disagreements(results)]
    return lines


def print_tables(results: Results, console: Console) -> None:
    for grid in grids(results):
        table = Table(title=f"{TITLES[grid.family]}; {grid.allocator} allocator", show_lines=True)
        table.add_column("case")
        for implementation in grid.implementations:
            table.add_column(implementation, justify="right", style="bold" if implementation == "ours" else None)
        for case in grid.cases:
            table.add_row(case, *(cell(grid, case, name, "\n") for name in grid.implementations))
        console.print(table)
    for line in notes(results):
        console.print(line, markup=False, soft_wrap=True)


def markdown(results: Results) -> str:
    parts = []
    for grid in grids(results):
        header = ["case", *grid.implementations]
        lines = [f"{TITLES[grid.family]}. {grid.allocator.capitalize()} allocator.", "", f"| {' | '.join(header)} |"]
        lines.append(f"|{' --- |' * len(header)}")
        for case in grid.cases:
            cells = [cell(grid, case, name, "<br>") for name in grid.implementations]
            lines.append(f"| {' | '.join([case, *cells])} |")
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, "\n".join(f"- {line}" for line in notes(results))]) + "\n"


def write(results: Results, folder: Path) -> None:
    """`results.json`, `results.md` and `results.png`, as they stand."""
    from tests.benchmarks.picture import draw

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=1))
    (folder / "results.md").write_text(markdown(results))
    draw(results, folder / "results.png")


def main() -> None:
    folder = Path(sys.argv[1])
    results = json.loads((folder / "results.json").read_text())
    print_tables(results, Console(width=max(Console().width, 170)))
    write(results, folder)


if __name__ == "__main__":
    main()
