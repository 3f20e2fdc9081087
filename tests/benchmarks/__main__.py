"""Time and peak memory of ours against the matrix products, the unfused formulas, torchtune, TRL and Liger.

Every implementation runs in a fresh process, in turns with its reference and ours. Writes results.json, results.md and
results.png after each case, so a run that is cut short leaves what it has.
"""

from __future__ import annotations

import json
import platform
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console

from tests.benchmarks import cases, harness, report

PACKAGES = ("torch", "torchtune", "torchao", "trl", "liger-kernel", "transformers", "numpy")


@dataclass
class Config:
    only: tuple[str, ...] = ()
    """Cases to run: parts of titles, or shell patterns. None: all. See --list."""
    rounds: int = 5
    """Timed iterations of each implementation in each turn-taking group; medians count."""
    allocator: tuple[Literal["caching", "default"], ...] = ("caching", "default")
    """glibc that keeps what it was given, as a GPU's allocator does, and glibc as it comes. Memory needs the default one."""
    output: Path = Path("runs/bench")
    """Folder for results.json, results.md and results.png."""
    device: str = "auto"
    """auto takes CUDA where there is one. On CUDA, allocators make no difference: one is enough."""
    threads: int = 2
    """Threads of each process, on the CPU."""
    quick: bool = False
    """One round, few rows, the default allocator: shows that everything works, not how fast."""
    add: bool = False
    """Keep what the output folder holds of other cases and allocators, measured with the same settings: a run in pieces."""
    list: bool = False
    """Print the cases' titles and end."""


def main(config: Config) -> None:
    chosen = cases.matching(config.only)
    if config.list or not chosen:
        print("\n".join(case.title for case in (chosen or cases.all_cases())))
        return
    if config.quick:
        chosen, config.rounds, config.allocator = [case.quick() for case in chosen], 1, ("default",)
    console = Console()
    settings = {"rounds": config.rounds, "threads": config.threads, "quick": config.quick}
    results: dict[str, Any] = {
        "environment": _environment(),
        "settings": settings,
        "padding": harness.run_module("padding"),
        "rows": [],
    }
    if config.add:
        results["rows"] = _kept_rows(config, settings)
    with console.status("") as status:
        for case in chosen:
            for allocator in config.allocator:
                rows = harness.measure(case, allocator, config.rounds, config.device, config.threads, status.update)
                _replace(results["rows"], rows)
                results["environment"]["device"] = next((row["device"] for row in rows if "device" in row), "cpu")
                report.write(results, config.output)
                console.print(_line(case, allocator, rows), markup=False, highlight=False, soft_wrap=True)
    report.print_tables(results, Console(width=max(console.width, 170)))
    console.print(f"written: {config.output}/results.json, results.md, results.png", markup=False)


def _kept_rows(config: Config, settings: dict[str, Any]) -> list[dict[str, Any]]:
    path = config.output / "results.json"
    if not path.exists():
        return []
    before = json.loads(path.read_text())
    if before["settings"] != settings:
        raise SystemExit(
            f"{path} was measured with {before['settings']}, this run has {settings}: choose another --output"
        )
    return before["rows"]


def _replace(rows: list[dict[str, Any]], new: list[dict[str, Any]]) -> None:
    """New rows instead of older ones of the same case and allocator, all in the order of the cases."""
    places = {(row["family"], row["case"], row["allocator"]) for row in new}
    rows[:] = [row for row in rows if (row["family"], row["case"], row["allocator"]) not in places] + new
    order = {case.title: index for index, case in enumerate(cases.all_cases())}
    rows.sort(key=lambda row: order[f"{row['family']}/{row['case']}"])


def _line(case: cases.Case, allocator: str, rows: list[dict[str, Any]]) -> str:
    ratios = (
        f"{row['implementation']} {row['to_reference']:.2f}" if "seconds" in row else f"{row['implementation']} failed"
        for row in rows
        if row["implementation"] != case.reference
    )
    return f"{case.title} [{allocator}] time / {case.reference}: {', '.join(ratios)}"


def _environment() -> dict[str, Any]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=harness.REPOSITORY, capture_output=True, text=True
    ).stdout.strip()
    return {"versions": versions | {"gakd": commit}, "processor": _processor(), "python": platform.python_version()}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
