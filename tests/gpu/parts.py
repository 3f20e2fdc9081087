"""The parts of a run: each in a process of its own, with its share of the time, so that none takes another down.

A part writes a line of JSON for every result as soon as it has it. One that dies, hangs or fails keeps what it wrote.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.gpu import check_part, generation_part, step_part, token_part
from tests.gpu.setting import Setting, first_line

# In this order; of the time that is left, a part may take its share of what it and those behind it ask for.
PARTS: dict[str, tuple[Callable[[Setting], None], float]] = {
    "tests": (check_part.run, 5.0),
    "token": (token_part.run, 2.0),
    "step": (step_part.run, 2.0),
    "generation": (generation_part.run, 1.0),
}
LEAST_SECONDS = 15  # a process and its imports
GRACE_SECONDS = 15  # from a part's deadline, which it keeps itself, to its end from outside


def share_of(name: str, names: list[str], left: float) -> float:
    """Seconds of those that are left; what an earlier part did not use goes to those behind it."""
    behind = names[names.index(name) :]
    return left * PARTS[name][1] / sum(PARTS[other][1] for other in behind)


def run_here(name: str, setting: Setting, lines: Path) -> None:
    """In this process. Its rows go to a file of lines; one that raises says so there."""
    begin = time.monotonic()

    def report(row: dict[str, Any]) -> None:
        with lines.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{name}: {brief(row)}", flush=True)

    setting.report = report
    try:
        PARTS[name][0](setting)
    except Exception as error:
        traceback.print_exc()
        report({"error": first_line(error)})
    report({"ended_after": time.monotonic() - begin})


def run_there(command: list[str], name: str, lines: Path, seconds: float) -> None:
    """A part in a process of its own, which is ended when it overstays."""
    try:
        status = subprocess.run(command, timeout=seconds + GRACE_SECONDS, check=False).returncode
        why = f"its process ended with status {status}" if status else None
    except subprocess.TimeoutExpired:
        why = f"ended from outside after {seconds + GRACE_SECONDS:.0f} s"
    if why is not None:
        with lines.open("a") as file:
            file.write(json.dumps({"error": why}) + "\n")
        print(f"{name}: {why}", file=sys.stderr, flush=True)


def result_of(lines: Path) -> dict[str, Any]:
    """What a part came to: `ok`, or `failed` where a result of gakd's own has an error."""
    rows = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    ended = [row["ended_after"] for row in rows if "ended_after" in row]
    rows = [row for row in rows if "ended_after" not in row]
    failed = any("error" in row and not row.get("peer") for row in rows) or not ended
    if rows and all("left_out" in row for row in rows):
        return {"status": "left out", "seconds": ended[0] if ended else None, "rows": rows}
    return {"status": "failed" if failed else "ok", "seconds": ended[0] if ended else None, "rows": rows}


def brief(row: dict[str, Any]) -> str:
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
    )
