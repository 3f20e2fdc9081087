"""Everything that is to be known of one card in at most ten minutes: tests, token pass, whole step, generation.

Writes results.json, table.md and plot.png. Ends with status 1 where a part failed. `--dry-run` runs the same code at tiny
sizes on the CPU.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from tests.gpu import machine, parts, picture, report
from tests.gpu.setting import TINY, Deadline, Setting, Sizes

ROOT = Path(__file__).parent.parent.parent


@dataclass
class Config:
    minutes: float = 10.0
    """Of the whole; what has no time left is left out, and the table says so."""
    only: tuple[str, ...] = ()
    """Of tests, token, step, generation. None: all."""
    dry_run: bool = False
    """On the CPU at tiny sizes, in this process: shows that everything runs, not how fast."""
    output: Path = Path("build/gpu")
    """Folder for results.json, table.md and plot.png."""
    part: str = ""
    """For the run itself: one part in this process, its results as lines into the output folder."""


def main(config: Config) -> int:
    if unknown := {*config.only, *([config.part] if config.part else [])} - parts.PARTS.keys():
        print(f"--only takes {', '.join(parts.PARTS)}, got {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    if not (config.dry_run or torch.cuda.is_available()):
        print("no CUDA device: run this on a machine with one, or with --dry-run", file=sys.stderr)
        return 2
    device = torch.device("cpu") if config.dry_run else torch.device("cuda", torch.cuda.current_device())
    config.output.mkdir(parents=True, exist_ok=True)
    if config.part:
        parts.run_here(config.part, _setting(config, device, 60 * config.minutes), _lines(config, config.part))
        return 0
    results = run_parts(config, device)
    failed = [name for name, part in results["parts"].items() if part["status"] == "failed"]
    print(
        f"written: {config.output}/results.json, table.md, plot.png"
        + (f"; failed: {', '.join(failed)}" if failed else "")
    )
    return 1 if failed else 0


def run_parts(config: Config, device: torch.device) -> dict[str, Any]:
    end = time.monotonic() + 60 * config.minutes
    results: dict[str, Any] = {"machine": machine.machine(device), "commit": _commit(), "minutes": config.minutes}
    results |= {"dry_run": config.dry_run, "parts": {}}
    print(json.dumps(results["machine"]), flush=True)
    names = [name for name in parts.PARTS if not config.only or name in config.only]
    for name in names:
        lines, left = _lines(config, name), end - time.monotonic() - parts.GRACE_SECONDS
        lines.unlink(missing_ok=True)
        seconds = parts.share_of(name, names, left)
        if seconds < parts.LEAST_SECONDS:
            results["parts"][name] = {"status": "left out", "seconds": None, "rows": [{"left_out": "no time left"}]}
        else:
            if config.dry_run:
                parts.run_here(name, _setting(config, device, seconds), lines)
            else:
                minutes = (seconds - parts.LEAST_SECONDS) / 60
                command = [
                    sys.executable,
                    "-m",
                    "tests.gpu",
                    "--part",
                    name,
                    "--minutes",
                    str(minutes),
                    "--output",
                    str(config.output),
                ]
                parts.run_there(command, name, lines, seconds)
            results["parts"][name] = parts.result_of(lines)
        write(results, config.output)
    return results


def write(results: dict[str, Any], folder: Path) -> None:
    """After each part, so that a run that is ended keeps what it has."""
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (folder / "table.md").write_text(report.markdown(results))
    picture.draw(results, folder / "plot.png")


def _setting(config: Config, device: torch.device, seconds: float) -> Setting:
    return Setting(device, TINY if config.dry_run else Sizes(), Deadline(seconds), lambda row: None)


def _lines(config: Config, name: str) -> Path:
    return config.output / f"{name}.jsonl"


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config, description=__doc__)))
