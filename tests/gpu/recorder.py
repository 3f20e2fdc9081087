"""A plugin of pytest's (`-p tests.gpu.recorder`): a line of JSON for each test once it is done, so that a cut run keeps them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

LINES = "GAKD_GPU_LINES"  # the file


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Of a test's three phases: the call, and the others where they fail or leave it out."""
    if report.when != "call" and report.passed:
        return
    row: dict[str, Any] = {"test": report.nodeid.removeprefix("tests/gpu/"), "seconds": report.duration}
    if report.failed:
        row["error"] = _message(report)
    elif report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        row["left_out"] = reason.removeprefix("Skipped: ")
    with Path(os.environ[LINES]).open("a") as file:
        file.write(json.dumps(row) + "\n")


def _message(report: pytest.TestReport) -> str:
    """The first line of what was raised."""
    crash = getattr(report.longrepr, "reprcrash", None)
    text = (report.longreprtext if crash is None else crash.message).strip()
    return text.splitlines()[0][:300] if text else "failed"
