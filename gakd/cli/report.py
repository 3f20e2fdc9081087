"""Compare runs: one HTML file with their curves, tables, sample completions and the health of their games.

Runs that differ in nothing but the seed are one group: its lines are means over the seeds, its bands go from the lowest to
the highest. The file needs no network and nothing beside it. Differences are from the first run's group.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from gakd.errors import InputError
from gakd.files import write_whole


@dataclass
class ReportConfig:
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="OUTPUT_DIR...")] = ()
    """Output folders of runs. The first one's group is what the others are compared with."""
    output: Path = Path("report.html")
    """The HTML file that is written; one that exists is replaced."""
    completions: int = 5
    """Test prompts of which the completions are shown side by side."""


def main(config: ReportConfig) -> None:
    """Read the runs, write the page; a folder that is no run is left out with a warning."""
    from gakd.report.groups import group_warnings, grouped
    from gakd.report.page import html
    from gakd.report.read import read_run

    if config.completions < 0:
        raise InputError(f"--completions is {config.completions}: expected 0 or more prompts")
    if config.output.is_dir():
        raise InputError(f"--output {config.output} is a folder: give the name of a file, {config.output}/report.html")
    folders = list(dict.fromkeys(config.runs))
    if missing := [str(folder) for folder in folders if not folder.is_dir()]:
        raise InputError(f"no folder {', '.join(missing)}: give the --output-dir of runs")
    strays = [
        folder for folder in folders if not any((folder / name).exists() for name in ("config.json", "metrics.csv"))
    ]
    runs = [read_run(folder) for folder in folders if folder not in strays]
    if not runs:
        given = ", ".join(map(str, folders)) or "nothing"
        raise InputError(f"expected the --output-dir of at least one run, with its config.json, got {given}")
    groups = grouped(runs)
    warnings = [f"{folder}: left out, it has no config.json and no metrics.csv" for folder in strays]
    warnings += [f"{run.folder}: {warning}" for run in runs for warning in run.warnings] + group_warnings(groups)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    write_whole(config.output, html(groups, warnings, config.completions, config.output.parent))
    print(f"{config.output}: {len(runs)} run{'s' * (len(runs) > 1)} in {len(groups)} group{'s' * (len(groups) > 1)}")
