"""The tests of this folder in a pytest of their own, whose results come one by one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.gpu.recorder import LINES
from tests.gpu.setting import Setting

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
DRY_RUN = "GAKD_GPU_DRY_RUN"  # the tests then run on a CPU, at tiny sizes
# The long ones last. The runner's own tests, which start this very run, stay out.
FILES = [
    f"tests/gpu/{path.name}"
    for path in sorted(HERE.glob("test_*.py"), key=lambda path: (path.name == "test_recipes.py", path.name))
    if path.name != "test_dry_run.py"
]


def is_dry() -> bool:
    return os.environ.get(DRY_RUN) == "1"


def run(setting: Setting) -> None:
    own = {DRY_RUN: str(int(setting.dry)), "HF_HUB_OFFLINE": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "tests.jsonl"
        plugins = ["-p", "no:cacheprovider", "-p", "tests.gpu.recorder"]
        command = [sys.executable, "-m", "pytest", "-q", "--durations=10", *plugins, *FILES]
        try:
            environment = os.environ | own | {LINES: str(lines)}
            seconds = max(setting.deadline.left, 1)
            done = subprocess.run(command, cwd=ROOT, env=environment, timeout=seconds, check=False)
            why = f"pytest ended with status {done.returncode}" if done.returncode else None
        except subprocess.TimeoutExpired:
            setting.report(
                {"test": "the others", "left_out": "no time left: `python -m pytest tests/gpu` has no limit"}
            )
            why = None
        rows = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    for row in rows:
        setting.report(row)
    if why is not None and not any("error" in row for row in rows):
        setting.report({"test": "all", "error": why})
